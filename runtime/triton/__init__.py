"""NVIDIA Triton Inference Server: write its model repository, and serve a bundle from its Python backend."""
