"""Tables of predicted times of a guided step on an H100, and of the assumptions they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page import markdown
from benchmarks.page.latest import Results
from benchmarks.page.roof import PUBLISHED

GOAL_MS = 5.0
"""Goal for the best forms at 512, batch 1."""
_SIDE = 512
_BEST, _OPTIONS = "best forms", "best options"
_EARLIER = (
    ("convolutions", 1.7, ("convolution",)),
    ("their layout conversions and biases", 1.0, ("layout conversion", "convolution bias")),
    ("products", 1.2, ("product",)),
    ("bias, residual and GEGLU passes", 1.1, ("bias", "residual", "activation")),
    ("attention", 0.7, ("attention",)),
    ("transposes around it", 1.0, ("transpose",)),
    ("GroupNorm with SiLU", 1.8, ("group norm",)),
    ("the rest", 0.5, ("layer norm", "copy", "step")),
)
"""The earlier estimate of the plain graph by reading, in ms, and the kinds that each of its groups has."""
_LABELS = {"engine": "fused layers"}

Value = Mapping[str, Any]


def verdict(results: Results, folder: Path) -> str:
    """The predicted times at 512, batch 1, beside the goal; links are relative to ``folder``."""
    result = results.newest("prediction")
    value = result.value
    plain, best = (_case(value, *column)["ms"] for column in (("plain", ""), (_BEST, _OPTIONS)))
    if best["expected"] <= GOAL_MS:
        holds = "is predicted to be met"
    elif best["low"] <= GOAL_MS:
        holds = "is within reach only if every assumption is favourable"
    else:
        holds = "is out of reach"
    options = ", ".join(f"`{key}` {setting}" for key, setting in value["best_options"].items())
    text = (
        f"A guided step at {_SIDE}, batch 1: {_range(plain)} ms for the plain graph, {_range(best)} ms for the best "
        f"forms with {options}. The goal of {GOAL_MS:g} ms {holds}."
    )
    return f"{text}\n\n{markdown.origin(result, folder)}"


def times(results: Results, folder: Path) -> str:
    """A table for each size: graphs and options by images in a call."""
    value = results.newest("prediction").value
    sides = dict.fromkeys(case["side"] for case in value["cases"])
    return "\n\n".join(_times(value, side) for side in sides)


def _times(value: Value, side: int) -> str:
    own = [case for case in value["cases"] if case["side"] == side]
    batches = list(dict.fromkeys(case["batch"] for case in own))
    rows = [
        [_label(*column), *(_range(_case(value, *column, side, batch)["ms"]) for batch in batches)]
        for column in dict.fromkeys((case["graph"], case["options"]) for case in own)
    ]
    return markdown.table((f"{side}x{side}, ms", *(f"batch {batch}" for batch in batches)), rows)


def kinds(results: Results, folder: Path) -> str:
    """Kernels by kind at 512, batch 1: share of the time, launches, bytes."""
    value = results.newest("prediction").value
    columns = (("plain", ""), (_BEST, ""), (_BEST, _OPTIONS), ("engine", ""))
    cases = [_case(value, *column) for column in columns]
    rows = [[kind, *(_kind(case, kind) for case in cases)] for kind in cases[0]["kinds"]]
    total = [
        f"{case['ms']['expected']:.2f} ms, {case['launches']}, {case['bytes'] / 1e6:.0f} MB" for case in cases
    ]
    return markdown.table(("", *(_label(*column) for column in columns)), [*rows, ["all", *total]])


def _kind(case: Value, kind: str) -> str:
    each = case["kinds"][kind]
    if not each["launches"]:
        return "-"
    share = each["ms"]["expected"] / case["ms"]["expected"]
    return f"{share:.0%}, {each['launches']}, {each['bytes'] / 1e6:.0f} MB"


def earlier(results: Results, folder: Path) -> str:
    """The plain graph's prediction beside the earlier estimate."""
    case = _case(results.newest("prediction").value, "plain", "")
    rows: list[list[object]] = []
    for label, estimate, members in _EARLIER:
        own = [case["kinds"][kind] for kind in members]
        ms = {name: sum(each["ms"][name] for each in own) for name in ("low", "expected", "high")}
        rows.append([label, f"{estimate:g}", _range(ms), sum(each["launches"] for each in own)])
    total = sum(estimate for _, estimate, _ in _EARLIER)
    rows.append(["all", f"{total:g}", _range(case["ms"]), case["launches"]])
    return markdown.table(("plain graph, 512, batch 1", "estimate, ms", "predicted, ms", "launches"), rows)


def check(results: Results, folder: Path) -> str:
    """Fused layers at another GPU's rates beside figures that others publish."""
    value = results.newest("prediction").value
    published = {(name, side): rate for name, model, side, rate in PUBLISHED if model == "SD 2.1"}
    rows = [
        [
            f"{each['gpu']}, {each['side']}",
            _range(each["ms"]),
            f"{1e3 / published[each['gpu'], each['side']]:.1f}",
        ]
        for each in value["checks"]
    ]
    return markdown.table(("fused layers, batch 1", "predicted, ms", "published, ms"), rows)


def assumptions(results: Results, folder: Path) -> str:
    """The assumed values with their sources."""
    value = results.newest("prediction").value
    rows = [
        [
            each["label"],
            f"{each['expected']:g} ({each['low']:g} to {each['high']:g})",
            each["unit"],
            each["source"],
        ]
        for each in value["assumptions"].values()
    ]
    return markdown.table(("", "value", "unit", "source"), rows)


def _case(value: Value, graph: str, options: str, side: int = _SIDE, batch: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = next(
        case
        for case in value["cases"]
        if (case["graph"], case["options"], case["side"], case["batch"]) == (graph, options, side, batch)
    )
    return found


def _label(graph: str, options: str) -> str:
    name = _LABELS.get(graph, graph)
    return f"{name}, {options}" if options else name


def _range(ms: Mapping[str, float]) -> str:
    return f"{ms['expected']:.1f} ({ms['low']:.1f} to {ms['high']:.1f})"
