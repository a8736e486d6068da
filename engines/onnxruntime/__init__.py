"""The ONNX Runtime backend: runs a bundle's graphs on a CPU or through the CUDA provider."""
