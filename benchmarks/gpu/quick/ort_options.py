"""Options of ONNX Runtime's CUDA provider, forms of the graph, and the pairs that the quick check compares."""

from __future__ import annotations

PLAIN = "plain"
OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
    "tf32": {"use_tf32": "1"},
    "tf32-fused": {"use_tf32": "1", "fuse_conv_bias": "1"},
    "tf32-fused-cudnn": {"use_tf32": "1", "fuse_conv_bias": "1", "sdpa_kernel": "8"},
    "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "nhwc": {"prefer_nhwc": "1"},
    "fuse-conv-bias": {"fuse_conv_bias": "1"},
    "sdpa-flash": {"sdpa_kernel": "1"},
    "sdpa-efficient": {"sdpa_kernel": "2"},
    "sdpa-cudnn": {"sdpa_kernel": "8"},
    "nhwc-fuse-heuristic": {
        "prefer_nhwc": "1", "fuse_conv_bias": "1", "cudnn_conv_algo_search": "HEURISTIC",
    },
}  # fmt: skip
"""CUDA provider options that are compared. ``default`` has ``use_tf32`` 0, as sd2rt sets it for graphs with float32
products: ONNX Runtime 1.31 then drops every plan of cuDNN that has the note TENSOR_CORE, those of float16
convolutions too. ``tf32`` is what sd2rt uses for others."""

_STANDARD = ("attention-3d", "cross-kv", "time", "step-sums")
FORMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "attention-3d": ("attention-3d",),
    "qkv": ("qkv",),
    "cross-kv": ("cross-kv",),
    "time": ("time",),
    "step-sums": ("step-sums",),
    "bias-split-gelu": ("bias-split-gelu",),
    "nhwc": ("nhwc",),
    "default-forms": _STANDARD,
    "best-forms": (*_STANDARD, "bias-split-gelu", "nhwc"),
}
"""Graphs by name, with the forms of sd2rt.export.graphs.cuda_forms that they have, made where the kit is packed."""
CUDA_ONLY = ("bias-split-gelu", "nhwc")
"""Forms with operators that only the CUDA provider has."""

CELLS: tuple[tuple[str, str], ...] = (
    ("default", PLAIN),
    ("tf32", "default-forms"),
    ("tf32", "best-forms"),
    ("tf32", PLAIN),
    ("tf32-fused-cudnn", "best-forms"),
    ("tf32", "nhwc"),
    ("default", "best-forms"),
    ("tf32-fused", "best-forms"),
    ("tf32", "attention-3d"),
    ("tf32", "bias-split-gelu"),
    ("tf32", "cross-kv"),
    ("tf32", "time"),
    ("tf32", "step-sums"),
    ("tf32", "qkv"),
    *((name, PLAIN) for name in OPTIONS if name != "default" and not name.startswith("tf32")),
)
"""Pairs of options and form, in the order in which they are measured."""


def stage_name(options: str, form: str) -> str:
    """Name of the stage that measures a pair."""
    return f"ort-{options}" if form == PLAIN else f"ort-{options}@{form}"


def form_file(form: str) -> str:
    """File name of a form's graph, beside the plain graph, whose weights it reads."""
    return f"form-{form}.onnx"
