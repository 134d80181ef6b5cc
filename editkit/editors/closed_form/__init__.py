"""The closed-form editors: value vectors by gradient, then one solve."""
