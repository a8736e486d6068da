"""The file of a part's graph for ONNX Runtime's CUDA provider."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Precision
from sd2rt.engines.weights.graph_archive import CUDA_MODEL, MODEL
from sd2rt.export.graphs.cuda_forms.forms import DEFAULT_FORMS, apply_forms
from sd2rt.export.graphs.cuda_forms.merged import MergedConstants

_PARTS = ("denoiser", "text_encoder", "encoder", "decoder")
"""The depth estimator is float32. Tiles have statistics in float32, by matrix products."""


def write_graph_for_cuda(name: PartName, folder: Path, precision: Precision) -> bool:
    """Write a part's graph in the default forms beside ``model.onnx``, whose weights it reads.

    Returns false, and writes nothing, for float32, in which ONNX Runtime has no flash attention, and for other parts.
    """
    if precision != "fp16" or name not in _PARTS:
        return False
    write_forms(folder / MODEL, folder / CUDA_MODEL, DEFAULT_FORMS)
    return True


def write_forms(source: Path, target: Path, forms: Collection[str]) -> MergedConstants:
    """Write a graph in these forms to another file of the same folder.

    Raises:
        ValueError: there is no form of such a name.
    """
    model = ir.load(source)
    merged = apply_forms(model, forms)
    ir.save(model, target)
    return merged
