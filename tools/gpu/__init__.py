"""What runs on a machine with an NVIDIA GPU: ``make gpu OUT=dir``. Not measured on a GPU."""
