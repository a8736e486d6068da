"""optimum-onnx's pipeline: every network is exported by optimum and run by ONNX Runtime at its defaults."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.diffusers_call import maker
from benchmarks.peers.job import Generate, Job, require

PACKAGES = ("optimum-onnx", "optimum", "onnxruntime", "diffusers", "transformers", "torch")
_PROVIDER = "CPUExecutionProvider"


def prepare(job: Job) -> None:
    require("optimum.onnxruntime")
    if not job.folder.exists():
        exported = _pipeline().from_pretrained(job.checkpoint, export=True, provider=_PROVIDER)
        exported.save_pretrained(job.prepared)


def open_pipeline(job: Job) -> Generate:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    opened = _pipeline().from_pretrained(
        job.prepared, export=False, provider=_PROVIDER, session_options=options
    )
    return maker(opened, job)


def _pipeline() -> Any:
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    return ORTStableDiffusionPipeline
