"""What is measured of a model, row by row: rows, what is found of each, and the runs through the model between them."""
