"""Run engine files with TensorRT, its lean runtime or TensorRT for RTX, which share one Python API.

The `compile` package builds the engine files.
"""
