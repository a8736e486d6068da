"""Options of ONNX Runtime's CUDA provider that the quick check compares."""

from __future__ import annotations

OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
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
"""CUDA provider options that are compared. ``default`` is what sd2rt uses."""
