"""Detect operators of a CUDA session that ONNX Runtime runs on the CPU, which it does silently."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from sd2rt.engines.errors import EngineError
from sd2rt.engines.fallback_warning import warn_of_fallback
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.onnxruntime.opening import CPU_PROVIDER

_LOG = logging.getLogger(__name__)

SHAPE_ARITHMETIC = frozenset({"Add", "Concat", "Div", "Gather", "Mul", "Reshape", "Squeeze"})
"""Operators that compute shapes. Their inputs are in host memory, so ONNX Runtime prefers the CPU and copies nothing.
All of them have CUDA kernels for tensors."""
WITHOUT_CUDA_KERNEL = frozenset({"MaxPool"})
"""Operators for which onnxruntime-gpu 1.31 has no CUDA kernel in the graphs' opset. Only the depth estimator has one,
which runs once per image."""


def check_cpu_fallback(session: Any, label: str, *, allow_cpu_fallback: bool) -> None:
    """Check that a session computes on the GPU; it must record its graph assignment.

    Args:
        session: an ONNX Runtime session with the CUDA provider.
        label: the session's name in messages.
        allow_cpu_fallback: warn instead of raising an error.

    Raises:
        EngineError: operators other than shape arithmetic run on the CPU.
    """
    on_cpu = Counter(
        node.op_type
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name == CPU_PROVIDER
        for node in subgraph.get_nodes()
        if node.op_type not in SHAPE_ARITHMETIC | WITHOUT_CUDA_KERNEL
    )
    if not on_cpu:
        return
    listed = ", ".join(f"{count} {name}" for name, count in sorted(on_cpu.items()))
    message = f"{label}: ONNX Runtime runs operators on the CPU ({listed})"
    if not allow_cpu_fallback:
        raise EngineError(
            f"{message}: install the tested version with {install_hint('cuda')}, or run slowly with "
            "--allow-cpu-fallback (Python: allow_cpu_fallback=True)"
        )
    warn_of_fallback(_LOG, f"{message}, with copies from and to the GPU at every launch", stacklevel=4)
