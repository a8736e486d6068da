"""The table of peers: what each is called, which adapter makes it, and with which of its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16"]

LEAST_PSNR_DB: dict[Precision, float] = {"fp32": 40.0, "fp16": 25.0, "bf16": 20.0}
"""Below it a peer computes something else, and its speed says nothing: far less than what is asked of sd2rt,
for this tells a wrong picture from a rounded one."""
OURS, REFERENCE = "sd2rt", "diffusers"
COMMON = (OURS, REFERENCE)
"""Those that every peer's time is divided by; they are open all the time."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the table."""

    name: str
    label: str
    adapter: str
    precision: Precision = "fp32"
    options: dict[str, Any] = field(default_factory=dict)
    memory: float = 1.6
    """Peak over the checkpoint's bytes in fp32, roughly: for what may be open at the same time."""


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
"""By where the images are made. The ends that all are divided by have the same names on both."""


def variant(name: str, options: dict[str, Any]) -> Peer:
    """sd2rt with further arguments of ``Pipeline.open``; ``precision`` among them is what it computes in.

    ``bundle`` is a bundle's path in the place of the run's own.
    """
    told = dict(options)
    precision: Precision = told.get("precision", "fp32")
    if precision not in LEAST_PSNR_DB:
        raise ValueError(f"precision is {precision}: give one of {', '.join(LEAST_PSNR_DB)}")
    if precision != "bf16":
        # That of the bundle, which is not asked for.
        told.pop("precision", None)
    text = ", ".join(f"{key} {value}" for key, value in told.items())
    return Peer(name, f"sd2rt, {text}", "sd2rt_pipeline", precision, told, memory=1.3)
