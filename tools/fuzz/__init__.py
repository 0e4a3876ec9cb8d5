"""Random programs run with this package and with the library that it replaces, line by line."""
