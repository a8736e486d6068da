"""Random normals in NumPy that reproduce PyTorch's CPU and CUDA generators."""
