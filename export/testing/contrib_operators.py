"""ONNX Runtime's CUDA-only operators for ``onnx.reference``, written from their definitions.

Statistics are computed as the CUDA kernel does it: in float32, in one pass, from the sums of values and of squares.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float32])


class NhwcConv(OpRun):  # type: ignore[misc]
    """Convolution of [N, H, W, C] with a weight of [M, kH, kW, C]."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, weight: Array, bias: Array | None = None, **attributes: Any) -> tuple[Array]:
        assert attributes["group"] == 1
        padding, strides = attributes["pads"], attributes["strides"]
        top, left, bottom, right = padding
        padded = np.pad(x.astype(np.float32), ((0, 0), (top, bottom), (left, right), (0, 0)))
        rows, columns = weight.shape[1:3]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(1, 2))
        windows = windows[:, :: strides[0], :: strides[1]]  # [N, H', W', C, kH, kW]
        result = np.tensordot(windows, weight.astype(np.float32), axes=((3, 4, 5), (3, 1, 2)))
        if bias is not None:
            result = result + bias
        return (result.astype(x.dtype),)


class GroupNorm(OpRun):  # type: ignore[misc]
    """Group normalisation of [N, H, W, C], with SiLU if ``activation`` is 1. Gain and offset are float32."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, gain: Array, offset: Array, **attributes: Any) -> tuple[Array]:
        assert x.ndim == 4
        assert gain.dtype == offset.dtype == np.float32
        assert attributes["channels_last"] == 1
        batch, height, width, channels = x.shape
        groups = attributes["groups"]
        values = x.astype(np.float32).reshape(batch, height * width, groups, channels // groups)
        count = np.float32(values.shape[1] * values.shape[3])
        mean = values.sum((1, 3), keepdims=True) / count
        variance = np.square(values).sum((1, 3), keepdims=True) / count - mean * mean
        normalised = (values - mean) / np.sqrt(variance + np.float32(attributes["epsilon"]))
        result = normalised.reshape(x.shape) * gain + offset
        if attributes["activation"]:
            result = result / (1 + np.exp(-result))
        return (result.astype(x.dtype),)


class BiasSplitGelu(OpRun):  # type: ignore[misc]
    """``a * gelu(b)`` of the halves a and b of ``x + bias``, with the exact GELU."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        left, right = np.split((x + bias).astype(np.float32), 2, axis=-1)
        gelu = right * np.float32(0.5) * (_erf(right / np.float32(math.sqrt(2))) + 1)
        return ((left * gelu).astype(x.dtype),)


def reference_run(model: Any, inputs: dict[str, Array]) -> list[Array]:
    """Outputs of a graph by ``onnx.reference``, with these operators."""
    return list(ReferenceEvaluator(model, new_ops=[NhwcConv, GroupNorm, BiasSplitGelu]).run(None, inputs))
