"""Predict a guided step of 2.1-base on an H100: ONNX Runtime's CUDA provider by form of the graph, and fused engines.

    python -m benchmarks.cost_model.predict [--sizes 512 768] [--batches 1 2 4 8 16] [--no-engines] [--output]

Takes 5 minutes, 6 GB of memory and 2 GB of disk. Nothing is measured: see benchmarks/cost_model/assumptions.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from benchmarks.cost_model.assumptions import A800, ASSUMPTIONS, H100, SCENARIOS, Gpu, Scenario
from benchmarks.cost_model.counts import CountError, Counts, count
from benchmarks.cost_model.cuda_provider import Provider, kernels_of
from benchmarks.cost_model.full_graph import export_full_graph, input_shapes, step_dims
from benchmarks.cost_model.kernels import KINDS, Kernel, milliseconds
from benchmarks.cost_model.load_time import rewritten
from benchmarks.cost_model.reference_counts import REFERENCES, RELATIVE
from benchmarks.cost_model.rtx_layers import LayerError, build_layer_list, engine_kernels
from benchmarks.cost_model.shapes import Graph
from benchmarks.recording import machine, report
from sd2rt.engines.bundle.schema import Part
from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs
from sd2rt.export.graphs.cuda_forms.forms import DEFAULT_FORMS, FORMS, apply_forms

CONFIGS = "stable-diffusion-2-1-base"
BEST_OPTIONS = {"use_tf32": "1", "fuse_conv_bias": "1", "sdpa_kernel": "8"}
"""The provider's options that remove the most time from the best forms."""
BEST_FORMS = tuple(form for form in FORMS if form != "qkv")
"""The forms that are predicted to win together: the split behind one product for queries, keys and values costs what
it saves at batch 1, and more above."""
GRAPHS: dict[str, tuple[str, ...]] = {
    "plain": (),
    **{form: (form,) for form in FORMS},
    "default forms": DEFAULT_FORMS,
    "all forms": FORMS,
    "best forms": BEST_FORMS,
}
"""Graphs by name, with the forms that are applied to them."""
ENGINE_TARGET = "SM89"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_model.predict", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 768], help="sides of the images, in pixels"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--no-engines", action="store_true", help="leave TensorRT for RTX out")
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    with tempfile.TemporaryDirectory(prefix="predict-") as scratch:
        try:
            part = export_full_graph(PipelineConfigs.packaged(CONFIGS), "denoiser", Path(scratch))
            result = _predict(Path(scratch) / part.onnx, part, options)
        except (CountError, LayerError) as error:
            sys.exit(f"benchmarks.cost_model.predict: {error}")
    result |= {"machine": facts, "load_average_after": machine.load_average()}
    report.finish(result, _COLUMNS, _rows(result), options.output)


def _predict(path: Path, part: Part, options: argparse.Namespace) -> dict[str, Any]:
    cases: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    calls = [(side, batch) for side in options.sizes for batch in options.batches]
    plain = onnx.load(path, load_external_data=False)
    counted = {call: counts_of(plain, part, *call) for call in calls}
    for name, forms in GRAPHS.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        model = form_of(path, forms)
        loaded = rewritten(model)
        providers = {"": Provider()}
        if name == "plain":
            providers["without tensor cores"] = Provider(tensor_cores=False)
        if name == "best forms":
            providers["best options"] = Provider.of(BEST_OPTIONS)
        for side, batch in calls:
            graph = Graph(loaded, input_shapes(loaded, part, step_dims(side, batch)))
            for label, provider in providers.items():
                kernels = kernels_of(graph, provider)
                check_operations(name, kernels, operations_in(counted[side, batch], forms))
                case = {"graph": name, "options": label, "side": side, "batch": batch}
                cases.append(case | {"nodes": len(model.graph.node)} | described(kernels, kinds=batch == 1))
    if not options.no_engines:
        loaded = rewritten(plain)
        for side, batch in calls:
            print(f"engine {side}, batch {batch} ...", file=sys.stderr, flush=True)
            shapes = input_shapes(plain, part, step_dims(side, batch))
            layers = build_layer_list(path, shapes, ENGINE_TARGET)
            products = kernels_of(Graph(loaded, input_shapes(loaded, part, step_dims(side, batch))))
            kernels = engine_kernels(layers, plain.graph.node, products)
            case = {"graph": "engine", "options": "", "side": side, "batch": batch}
            cases.append(case | {"nodes": len(plain.graph.node)} | described(kernels, kinds=batch == 1))
            if batch == 1:
                checks.append({"gpu": A800.name, "side": side, "ms": predicted(kernels, A800)})
    return {
        "benchmark": "prediction",
        "gpu": H100.name,
        "configs": CONFIGS,
        "forms": {name: list(forms) for name, forms in GRAPHS.items()},
        "best_options": BEST_OPTIONS,
        "engine_target": ENGINE_TARGET,
        "assumptions": {name: asdict(assumption) for name, assumption in ASSUMPTIONS.items()},
        "operations": {f"{side}x{batch}": each.flops for (side, batch), each in counted.items()},
        "cases": cases,
        "checks": checks,
    }


def form_of(path: Path, forms: Collection[str]) -> onnx.ModelProto:
    """The graph of a file with forms applied; its weights stay in their file."""
    model = ir.load(path)
    apply_forms(model, forms)
    return ir.to_proto(model)


def counts_of(model: onnx.ModelProto, part: Part, side: int, batch: int) -> Counts:
    """The products of a guided step, counted; CountError if the table has another number."""
    counted = count(Graph(model, input_shapes(model, part, step_dims(side, batch))))
    tflop = counted.flops / 1e12
    for row in REFERENCES:
        same = (row.configs, row.part, row.side, row.rows) == (CONFIGS, "denoiser", side // 8, 2 * batch)
        if same and abs(tflop - row.tflop) > RELATIVE * row.tflop:
            raise CountError(f"{side}x{side}: {tflop:.6g} TFLOP counted, expected {row.tflop}")
    return counted


def operations_in(plain: Counts, forms: Collection[str]) -> int:
    """Operations of a graph in these forms, from the counts of the plain one."""
    # In this form the sums of a step's states are no products.
    return plain.flops - (plain.other if "step-sums" in forms else 0)


def check_operations(name: str, kernels: Iterable[Kernel], expected: int) -> None:
    """Raise CountError unless kernels have this number of operations."""
    counted = sum(kernel.operations for kernel in kernels)
    if counted != expected:
        raise CountError(
            f"{name}: kernels have {counted:,} operations, the count of products is {expected:,}"
        )


def described(kernels: Collection[Kernel], *, kinds: bool) -> dict[str, Any]:
    """Launches, bytes and predicted milliseconds of a call; with ``kinds``, of each kind too."""
    case: dict[str, Any] = {
        "launches": sum(kernel.launches for kernel in kernels),
        "bytes": sum(kernel.bytes for kernel in kernels),
        "ms": predicted(kernels),
    }
    if kinds:
        by_kind = {scenario: milliseconds(kernels, scenario) for scenario in SCENARIOS}
        case["kinds"] = {kind: _of_kind(kernels, kind, by_kind) for kind in KINDS}
    return case


def predicted(kernels: Collection[Kernel], gpu: Gpu = H100) -> dict[str, float]:
    """Milliseconds of a call by scenario."""
    return {scenario: round(sum(milliseconds(kernels, scenario, gpu).values()), 3) for scenario in SCENARIOS}


def _of_kind(
    kernels: Iterable[Kernel], kind: str, times: Mapping[Scenario, Mapping[Any, float]]
) -> dict[str, Any]:
    own = [kernel for kernel in kernels if kernel.kind == kind]
    return {
        "launches": sum(kernel.launches for kernel in own),
        "bytes": sum(kernel.bytes for kernel in own),
        "ms": {scenario: round(times[scenario][kind], 3) for scenario in SCENARIOS},
    }


_COLUMNS = ("graph", "options", "side", "batch", "launches", "GB", "low, ms", "expected, ms", "high, ms")


def _rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            *(case[name] for name in ("graph", "options", "side", "batch", "launches")),
            f"{case['bytes'] / 1e9:.2f}", *(f"{case['ms'][scenario]:.2f}" for scenario in SCENARIOS),
        )
        for case in result["cases"]
    ]  # fmt: skip


if __name__ == "__main__":
    main()
