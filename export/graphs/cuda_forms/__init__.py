"""Forms of a part's graph for ONNX Runtime's CUDA provider: the same computation in operators that have faster kernels."""
