"""Weights as files: a part's initialisers by their PyTorch names, and safetensors read with NumPy."""
