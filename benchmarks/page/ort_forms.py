"""Render the section on forms of the graph for ONNX Runtime's CUDA provider."""

from __future__ import annotations

from typing import Any

from benchmarks.page import markdown
from benchmarks.page.markdown import number

_TIES = 0.02
"""A ratio counts if its interval is clear of 1 by this much."""


def section(value: dict[str, Any]) -> str:
    """Tables of a result of ``benchmarks.cuda_forms``."""
    return "\n\n".join(
        (
            "Forms of the denoiser's graph compute the same in other operators "
            "([decisions.md](decisions.md#onnx-runtimes-cuda-provider-gets-another-where-it-is-faster)); `nhwc` and "
            "`bias-split-gelu` use operators that ONNX Runtime's CUDA provider alone has, and are in no bundle. "
            "Errors are fractions of the largest value of the state after one guided step of the demos.",
            _errors(value["errors"]),
            _operators(value["errors"]),
            _times(value["cpu_times"]),
            _memory(value["session_memory"]),
        )
    )


def _errors(cases: list[dict[str, Any]]) -> str:
    rows = []
    for form in dict.fromkeys(case["form"] for case in cases):
        row = [form]
        for precision in ("fp32", "fp16"):
            chosen = [case for case in cases if (case["form"], case["precision"]) == (form, precision)]
            worst = max(chosen, key=lambda case: case["max_error"])
            mean = max(case["mean_error"] for case in chosen)
            row += [
                _error(worst["max_error"]),
                _error(mean),
                " and ".join(sorted({case["by"] for case in chosen})),
            ]
        rows.append(row)
    header = ("form", "fp32: largest error", "mean error", "by", "fp16: largest error", "mean error", "by")
    counts = {
        precision: len({case["demo"] for case in cases if case["precision"] == precision})
        for precision in ("fp32", "fp16")
    }
    head = (
        f"The worst of {counts['fp32']} demos in float32, and of {counts['fp16']} in float16, where the reference "
        "runs the plain graph too:"
    )
    return f"{head}\n\n{markdown.table(header, rows)}"


def _error(value: float) -> str:
    return "0, to the bit" if value == 0 else f"{value:.1e}"


def _operators(cases: list[dict[str, Any]]) -> str:
    chosen = [case for case in cases if (case["demo"], case["precision"]) == ("demo", "fp32")]
    first = chosen[0]
    rows = [
        [
            case["form"],
            f"{case['operators']}",
            ", ".join(f"{kind} {before} to {after}" for kind, (before, after) in case["changed"].items()),
            f"{(case['graph_bytes'] - case['plain_graph_bytes']) / 1e3:+.0f}",
            f"{case['merged_bytes'] / first['weights_bytes']:.1%}",
        ]
        for case in chosen
    ]
    header = ("form", "operators", "that changed", "graph file, kB", "merged weights")
    head = (
        f"Operators of the demo's step, {first['plain_operators']} in the plain graph, which takes "
        f"{first['plain_graph_bytes'] / 1e3:.0f} kB beside {first['weights_bytes'] / 1e6:.1f} MB of weights. Merged "
        "weights are computed when a session opens, and replace the separate ones in memory; bundles store "
        f"{first['stored_merged_bytes']} bytes of them:"
    )
    return f"{head}\n\n{markdown.table(header, rows)}"


def _times(cases: list[dict[str, Any]]) -> str:
    rows = [[form, *(_verdict(case["ratios"][form]) for case in cases)] for form in cases[0]["ratios"]]
    plain = " and ".join(
        f"{number(case['plain_ms']['median'])} ms at {case['side']}x{case['side']}" for case in cases
    )
    head = (
        f"On this CPU with one thread, a step of the demo with the CPU's own graph took {plain}, in CPU time. Forms "
        f"applied to that graph, over it, by {cases[0]['rounds']} rounds that take turns (median, and its 95 % "
        f"interval; in bold where it is clear of 1 by {_TIES:.0%}):"
    )
    columns = [f"{case['side']}x{case['side']}" for case in cases]
    return f"{head}\n\n{markdown.table(('form', *columns), rows)}"


def _verdict(ratio: dict[str, float]) -> str:
    text = f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
    return f"**{text}**" if ratio["high"] < 1 - _TIES or ratio["low"] > 1 + _TIES else text


def _memory(cases: list[dict[str, Any]]) -> str:
    rows = [
        [
            case["way"],
            f"{case['buffer_bytes'] / 1e6:.0f}",
            *(f"{size / 1e6:.0f}" for size in case["session_bytes"]),
        ]
        for case in cases
    ]
    head = (
        f"Memory in MB that sessions of one graph with {cases[0]['weights_bytes'] / 1e6:.0f} MB of weights take, by "
        "the way that they are given them: from the file, by `add_external_initializers` or by `add_initializer` "
        "from one buffer, and without packing for the CPU's kernels:"
    )
    header = ("way", "buffer", "first session", "second, of a fixed size", "third, of another")
    return f"{head}\n\n{markdown.table(header, rows)}"
