"""The table of peers: name, adapter and options of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16"]

LEAST_PSNR_DB: dict[Precision, float] = {"fp32": 40.0, "fp16": 25.0, "bf16": 20.0}
"""Below this PSNR a peer computes something else and its speed is not comparable. The bounds are far looser than
sd2rt's own: they separate a wrong image from a rounded one."""
OURS, REFERENCE = "sd2rt", "diffusers"
COMMON = (OURS, REFERENCE)
"""The peers that every peer's time is divided by; they are open in every group."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the table."""

    name: str
    label: str
    adapter: str
    precision: Precision = "fp32"
    options: dict[str, Any] = field(default_factory=dict)
    memory: float = 1.6
    """Rough peak memory over the checkpoint's bytes in fp32; decides which peers fit into memory together."""


_DIFFUSERS = "diffusers_pipeline"
_OPENVINO = "openvino_pipeline"
_UNET = "unet_loop"
_HALF = {"dtype": "float16", "device": "cuda"}
PEERS: dict[str, tuple[Peer, ...]] = {
    "cpu": (
        Peer(OURS, "sd2rt, ONNX Runtime", "sd2rt_pipeline", memory=1.3),
        Peer("sd2rt-openvino", "sd2rt, OpenVINO", "sd2rt_pipeline", options={"backend": "openvino"}),
        Peer("sd2rt-bf16", "sd2rt, OpenVINO", "sd2rt_pipeline", "bf16", {"precision": "bf16"}),
        Peer(REFERENCE, "diffusers, eager", _DIFFUSERS, memory=1.3),
        Peer(
            "diffusers-compile", "diffusers, torch.compile of the UNet", _DIFFUSERS, options={"compile": True}
        ),
        Peer("diffusers-bf16", "diffusers, eager", _DIFFUSERS, "bf16", {"dtype": "bfloat16"}, 1.0),
        Peer("optimum-onnx", "optimum-onnx, ONNX Runtime", "optimum_onnx", memory=2.0),
        Peer("openvino", "optimum-intel, OpenVINO", _OPENVINO, options={"precision": "f32"}),
        Peer("openvino-bf16", "optimum-intel, OpenVINO", _OPENVINO, "bf16", {"precision": "bf16"}),
        Peer(
            "onnxruntime-loop",
            "diffusers, its UNet by ONNX Runtime",
            _UNET,
            options={"runner": "onnxruntime"},
        ),
        Peer(
            "openvino-loop",
            "diffusers, its UNet by OpenVINO",
            _UNET,
            options={"runner": "openvino", "precision": "f32"},
        ),
        Peer(
            "openvino-loop-bf16",
            "diffusers, its UNet by OpenVINO",
            _UNET,
            "bf16",
            {"runner": "openvino", "precision": "bf16"},
        ),
    ),
    "cuda": (
        Peer(OURS, "sd2rt", "sd2rt_pipeline", "fp16", {"device": "cuda"}, 0.7),
        Peer(REFERENCE, "diffusers, eager", _DIFFUSERS, options={"device": "cuda"}, memory=1.3),
        Peer("diffusers-fp16", "diffusers, eager", _DIFFUSERS, "fp16", _HALF, 1.0),
        Peer(
            "diffusers-compile",
            "diffusers, torch.compile of the UNet",
            _DIFFUSERS,
            "fp16",
            {**_HALF, "compile": True},
            1.0,
        ),
        Peer(
            "onnxruntime-cuda",
            "diffusers, its UNet by ONNX Runtime",
            _UNET,
            "fp16",
            {**_HALF, "runner": "onnxruntime"},
            1.0,
        ),
        Peer(
            "tensorrt", "diffusers, its UNet by TensorRT", _UNET, "fp16", {**_HALF, "runner": "tensorrt"}, 1.0
        ),
    ),
}
"""By device. The two common peers have the same names on both."""


def variant(name: str, options: dict[str, Any]) -> Peer:
    """Return an sd2rt peer with additional arguments of ``Pipeline.open``.

    ``options["precision"]`` is the compute precision; ``options["bundle"]`` replaces the run's bundle.

    Raises:
        ValueError: the precision is unknown.
    """
    arguments = dict(options)
    precision: Precision = arguments.get("precision", "fp32")
    if precision not in LEAST_PSNR_DB:
        raise ValueError(f"unknown precision {precision}: choose from {', '.join(LEAST_PSNR_DB)}")
    if precision != "bf16":
        # Pipeline.open takes a precision only where it differs from the bundle's.
        arguments.pop("precision", None)
    text = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return Peer(name, f"sd2rt, {text}", "sd2rt_pipeline", precision, arguments, memory=1.3)
