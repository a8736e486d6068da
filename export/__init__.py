"""Checkpoint to ONNX to bundle: the only package that imports PyTorch."""

from contextlib import suppress

from sd2rt.engines.telemetry import import_without_telemetry

with suppress(ImportError):
    # Here, before any module of this package imports diffusers or transformers, which import it too.
    import_without_telemetry("huggingface_hub.constants")
