"""Random programs run by this package and by the one that it stands in for, compared line by line."""
