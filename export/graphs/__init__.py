"""The PyTorch module of each part, its export to ONNX, and a cache of exported graphs."""
