"""optimum-intel's pipeline: every network is converted to OpenVINO's format once and compiled for one size.

Option ``precision``: OpenVINO's INFERENCE_PRECISION_HINT, ``f32`` or ``bf16``. The size is fixed, as OpenVINO's
documentation advises for a CPU.
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers.diffusers_call import maker
from benchmarks.peers.job import Generate, Job, UnavailableError, require

PACKAGES = ("optimum-intel", "optimum", "openvino", "diffusers", "transformers", "torch")


def prepare(job: Job) -> None:
    require("optimum.intel")
    check_precision(job)
    if not job.folder.exists():
        exported = _pipeline().from_pretrained(job.checkpoint, export=True, compile=False, load_in_8bit=False)
        exported.save_pretrained(job.prepared)


def open_pipeline(job: Job) -> Generate:
    opened = _pipeline().from_pretrained(
        job.prepared, export=False, compile=False, device="CPU", ov_config=settings(job)
    )
    opened.reshape(1, job.height, job.width, 1)
    opened.compile()
    return maker(opened, job)


def settings(job: Job) -> dict[str, str]:
    """Settings of OpenVINO's CPU plugin: threads, precision, and the latency hint."""
    return {
        "INFERENCE_NUM_THREADS": str(job.threads),
        "INFERENCE_PRECISION_HINT": str(job.options["precision"]),
        "PERFORMANCE_HINT": "LATENCY",
    }


def check_precision(job: Job) -> None:
    """Raise UnavailableError if OpenVINO would compute bf16 in float32."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if job.options["precision"] == "bf16" and "BF16" not in capabilities:
        raise UnavailableError(f"OpenVINO does not support bf16 on this CPU, only {', '.join(capabilities)}")


def _pipeline() -> Any:
    from optimum.intel import OVStableDiffusionPipeline

    return OVStableDiffusionPipeline
