"""Random numbers in NumPy, equal to PyTorch's generators on a CPU and on a GPU."""
