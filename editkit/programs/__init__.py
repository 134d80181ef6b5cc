"""Programs on top of the house: how the atlas is made and measured."""
