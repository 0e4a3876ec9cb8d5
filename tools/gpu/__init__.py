"""The checks for a machine with an NVIDIA GPU: ``make gpu OUT=dir``. Not measured on a GPU."""
