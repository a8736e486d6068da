"""Forms of a graph for ONNX Runtime's CUDA provider: the same computation in operators with faster kernels there."""
