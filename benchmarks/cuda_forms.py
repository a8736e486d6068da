"""Compare forms of the denoiser's graph for ONNX Runtime's CUDA provider with the plain graph, on a CPU.

    python -m benchmarks.cuda_forms [--rounds N] [--output]

For each demo: the error of each form, its operators by type, and the bytes that it stores and merges. In float32,
forms of standard operators run with ONNX Runtime's CPU provider. The others, which have CUDA kernels alone, run with
``onnx.reference``, with operators written from their definitions. In float16, where the CPU provider computes in
float32 and leaves out roundings as the graph allows, all run with the reference, the plain graph too. Errors are of
the new state after a guided step, as fractions of its largest value.

Then the CPU time of a step, in rounds that interleave the plain graph and the forms, and the memory that
sessions take which are given the same weights in different ways.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from benchmarks.gpu.part_inputs import dims_of, part_inputs
from benchmarks.recording import machine, report
from benchmarks.session_memory import WAYS
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.schema import Precision
from sd2rt.engines.demo.build import build_demo
from sd2rt.engines.demo.files import DEMO_NAMES
from sd2rt.export.graphs.cuda_forms.forms import DEFAULT_FORMS, FORMS, WITHOUT_CPU_KERNEL, apply_forms
from sd2rt.export.graphs.cuda_forms.merged import MergedConstants
from sd2rt.export.graphs.cuda_forms.split_gelu import bias_split_gelu
from sd2rt.export.graphs.cuda_forms.values import is_constant
from sd2rt.export.testing.contrib_operators import reference_run

Arrays = dict[str, NDArray[Any]]

GRAPHS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in FORMS},
    "default forms": DEFAULT_FORMS,
    "all forms": FORMS,
}
_SIDE: dict[Precision, int] = {"fp32": 64, "fp16": 32}
"""Side of the images in pixels. NumPy takes seconds for the products of a small step in float16."""
_IN_HALF = ("demo", "demo-x4")
"""Demos that are compared in float16 too: the others' graphs have the operators of the first."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda_forms", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds of the times")
    parser.add_argument("--size", type=int, default=128, help="side of the images of the times")
    report.add_output(parser)
    options = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "cuda-forms", "machine": machine.facts()}
    with tempfile.TemporaryDirectory() as scratch:
        result["errors"] = [
            case
            for name in DEMO_NAMES
            for precision in _SIDE
            if precision == "fp32" or name in _IN_HALF
            for case in compare(name, precision, Path(scratch) / f"{name}-{precision}")
        ]
        demo = Path(scratch) / "demo-fp32"
        result["cpu_times"] = cpu_times(demo, options.size, options.rounds)
        result["session_memory"] = session_memory()
    result["load_average_after"] = machine.load_average()
    rows = [
        [case[key] for key in ("demo", "precision", "form", "by")]
        + [f"{case[key]:.2g}" for key in ("max_error", "mean_error")]
        + [case["operators"], case["plain_operators"]]
        for case in result["errors"]
    ]
    header = ("demo", "precision", "form", "by", "max error", "mean error", "operators", "plain")
    report.finish(result, header, rows, options.output)


def compare(name: str, precision: Precision, bundle: Path) -> list[dict[str, Any]]:
    """Build a demo, and compare each form of its denoiser with the plain graph."""
    build_demo(name, bundle, precision=precision)
    folder = _copy(bundle)
    manifest = read_manifest(bundle)
    side = _SIDE[precision] * manifest.latents.vae_factor // 8
    inputs = part_inputs(manifest, "denoiser", dims_of(manifest, "denoiser", side))
    plain = ir.load(folder / "model.onnx")
    before = operators(plain)
    place = [value.name for value in plain.graph.outputs].index("state_out")

    def run(path: Path, *, on_cpu: bool) -> NDArray[Any]:
        if on_cpu:
            outputs: list[NDArray[Any]] = _session(path, 0).run(None, inputs)
            return outputs[place]
        return reference_run(onnx.load(path), inputs)[place]

    expected = run(folder / "model.onnx", on_cpu=precision == "fp32")
    cases = []
    for form, forms in GRAPHS.items():
        on_cpu = precision == "fp32" and _runs_on_cpu(forms)
        path, merged = _write(folder, forms, any_width=True)
        actual = run(path, on_cpu=on_cpu)
        error = np.abs(actual.astype(np.float64) - expected) / np.abs(expected).max()
        counted = operators(ir.load(path))
        cases.append(
            {
                "demo": name,
                "precision": precision,
                "form": form,
                "by": "CPU provider" if on_cpu else "onnx.reference",
                "max_error": float(error.max()),
                "mean_error": float(error.mean()),
                "operators": sum(counted.values()),
                "plain_operators": sum(before.values()),
                "changed": _changed(before, counted),
                **_bytes(folder, path, merged),
            }
        )
    return cases


def operators(model: ir.Model) -> Counter[str]:
    """Operators that run in a step, by type; ONNX Runtime computes constants when it opens the graph."""
    return Counter(node.op_type for node in model.graph if not is_constant(node.outputs[0]))


def _changed(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, list[int]]:
    """Counts before and after, of the operators whose count changed."""
    kinds = sorted({*before, *after})
    return {
        kind: [before.get(kind, 0), after.get(kind, 0)]
        for kind in kinds
        if before.get(kind, 0) != after.get(kind, 0)
    }


def _bytes(folder: Path, path: Path, merged: MergedConstants) -> dict[str, int]:
    return {
        "weights_bytes": sum(data.stat().st_size for data in folder.glob("*.data")),
        "plain_graph_bytes": (folder / "model.onnx").stat().st_size,
        "graph_bytes": path.stat().st_size,
        "merged_bytes": merged.nbytes,
        "stored_merged_bytes": merged.stored_bytes,
    }


def cpu_times(bundle: Path, side: int, rounds: int) -> dict[str, Any]:
    """CPU times of a step in the forms over the plain graph's, all for the CPU, in rounds that take turns."""
    folder = _copy(bundle)
    manifest = read_manifest(bundle)
    inputs = part_inputs(manifest, "denoiser", dims_of(manifest, "denoiser", side), still=True)
    graphs = {"plain": (), **{form: forms for form, forms in GRAPHS.items() if _runs_on_cpu(forms)}}
    sessions = {}
    for name, forms in graphs.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        model = ir.load(folder / "onnxruntime.onnx")
        apply_forms(model, forms)
        ir.save(model, path)
        sessions[name] = _session(path, 1)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 2):
        # Each round starts with another graph.
        names = [*sessions][number % len(sessions) :] + [*sessions][: number % len(sessions)]
        for name in names:
            began = time.process_time()
            for _ in range(3):
                sessions[name].run(["state_out"], inputs)
            if number >= 2:
                seconds[name].append((time.process_time() - began) / 3)
    return {
        "side": side,
        "rounds": rounds,
        "plain_ms": report.summary(value * 1e3 for value in seconds["plain"]),
        "ratios": {
            name: _interval([one / other for one, other in zip(values, seconds["plain"], strict=True)])
            for name, values in seconds.items()
            if name != "plain"
        },
    }


def _interval(ratios: list[float]) -> dict[str, float]:
    """The median, and its 95 % interval by resampling."""
    values = np.array(ratios)
    drawn = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def session_memory() -> list[dict[str, Any]]:
    """Memory of a first, second and third session of the same graph, by the way that weights are given to them."""
    command = [sys.executable, "-m", "benchmarks.session_memory"]
    outputs = (subprocess.run([*command, way], check=True, capture_output=True).stdout for way in WAYS)
    return [json.loads(output) for output in outputs]


def _runs_on_cpu(forms: Collection[str]) -> bool:
    return not set(forms) & set(WITHOUT_CPU_KERNEL)


def _copy(bundle: Path) -> Path:
    """A copy of the denoiser's folder: ``onnx_ir`` reads no weights of files with several links."""
    folder = bundle.with_name(f"{bundle.name}-denoiser")
    if not folder.exists():
        shutil.copytree(bundle / "denoiser", folder)
    return folder


def _write(folder: Path, forms: Collection[str], *, any_width: bool) -> tuple[Path, MergedConstants]:
    """Write the graph in these forms. The demos are narrower than the kernel of BiasSplitGelu: ``any_width`` has the
    operator all the same."""
    model = ir.load(folder / "model.onnx")
    merged = apply_forms(model, forms)
    if any_width and "bias-split-gelu" in forms:
        bias_split_gelu(model, range(1 << 20))
    path = folder / "forms.onnx"
    ir.save(model, path)
    return path, merged


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)


if __name__ == "__main__":
    main()
