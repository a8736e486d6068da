"""Checkpoint to ONNX to bundle: the only package that imports PyTorch."""
