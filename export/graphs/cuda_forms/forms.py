"""The forms by name, and their application to a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from sd2rt.export.graphs.cuda_forms.attention import attention_3d
from sd2rt.export.graphs.cuda_forms.channels_last import channels_last
from sd2rt.export.graphs.cuda_forms.merged import MergedConstant, MergedConstants
from sd2rt.export.graphs.cuda_forms.projections import merge_self_attention, merge_text, merge_time
from sd2rt.export.graphs.cuda_forms.split_gelu import bias_split_gelu
from sd2rt.export.graphs.cuda_forms.step_sums import step_sums

_APPLY: dict[str, Callable[[ir.Model], list[MergedConstant] | None]] = {
    "attention-3d": attention_3d,
    "qkv": merge_self_attention,
    "cross-kv": merge_text,
    "time": merge_time,
    "step-sums": step_sums,
    "bias-split-gelu": bias_split_gelu,
    "nhwc": channels_last,
}

FORMS = tuple(_APPLY)
"""Names of all forms, in the order in which they are applied."""

DEFAULT_FORMS = ("attention-3d", "cross-kv", "time", "step-sums")
"""Forms of the graph that bundles have for the CUDA provider."""

FORMS_REVISION = 1
"""Increment it when a form changes: bundles with its graph are then built again."""

WITHOUT_CPU_KERNEL = ("bias-split-gelu", "nhwc")
"""Forms with operators that only the CUDA provider has. ``nhwc`` sums by atomic additions, so that the same seed need
not give the same bits."""


def apply_forms(model: ir.Model, forms: Collection[str]) -> MergedConstants:
    """Rewrite a part's graph in place, with or without its weights' values.

    Args:
        model: the graph as a bundle has it, or the exporter's after ``onnxscript.optimizer``.
        forms: names of :data:`FORMS`; their order does not matter.

    Raises:
        ValueError: there is no form of such a name.
    """
    if unknown := sorted(set(forms) - set(FORMS)):
        raise ValueError(f"no form is named {unknown[0]!r}: choose from {', '.join(FORMS)}")
    merged: list[MergedConstant] = []
    for name in FORMS:
        if name in forms:
            merged += _APPLY[name](model) or []
    return MergedConstants(tuple(merged))
