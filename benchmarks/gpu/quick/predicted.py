"""Write the forms of a kit's denoiser, with the time that each pair of options and form is predicted to take.

Runs where the kit is packed, which has onnx and the exporters. The prediction is for an H100, from the packed graphs;
docs/performance.md has its assumptions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.quick.ort_options import CELLS, FORMS, OPTIONS, PLAIN, form_file
from benchmarks.gpu.quick.weights import BUNDLE

FILE = "predicted.json"


def write_forms(bundle: Path, side: int, folder: Path) -> list[dict[str, Any]]:
    """Write each form into the kit's bundle, and ``folder/predicted.json``; what that file has.

    Args:
        bundle: the fp16 bundle, with its weights.
        side: of the image, in pixels.
    """
    import onnx

    from benchmarks.cost_model.full_graph import input_shapes, step_dims
    from benchmarks.cost_model.load_time import rewritten
    from benchmarks.cost_model.predict import form_of
    from benchmarks.cost_model.shapes import Graph
    from sd2rt.engines.bundle.reader import open_bundle

    part = open_bundle(bundle).manifest.parts["denoiser"]
    plain = bundle / part.onnx
    graphs = {}
    for name, forms in FORMS.items():
        model = form_of(plain, forms)
        if name != PLAIN:
            onnx.save(model, (folder / BUNDLE / part.onnx).with_name(form_file(name)))
        loaded = rewritten(model)
        graphs[name] = Graph(loaded, input_shapes(loaded, part, step_dims(side, 1)))
    cells = [_cell(graphs[form], options, form) for options, form in CELLS]
    (folder / FILE).write_text(json.dumps(cells) + "\n")
    return cells


def _cell(graph: Any, options: str, form: str) -> dict[str, Any]:
    from benchmarks.cost_model.cuda_provider import Provider, kernels_of
    from benchmarks.cost_model.predict import predicted

    def predict(tensor_cores: bool) -> dict[str, float]:
        kernels = kernels_of(graph, Provider.of(OPTIONS[options], tensor_cores=tensor_cores))
        return {scenario: round(ms, 2) for scenario, ms in predicted(kernels).items()}

    dropped = OPTIONS[options].get("use_tf32", "0") == "0"
    return {
        "options": options,
        "form": form,
        "ms": predict(tensor_cores=True),
        "ms_without_tensor_cores": predict(tensor_cores=False) if dropped else None,
    }
