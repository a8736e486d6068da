"""The TensorRT backends, which share one Python API: TensorRT, its lean runtime and TensorRT for RTX.

Here engine files are chosen and run; `compile` makes them.
"""
