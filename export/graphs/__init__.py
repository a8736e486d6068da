"""What each part computes, as a PyTorch module, and its export to ONNX; exported graphs are cached."""
