"""Print results of `sd2rt bench` as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from sd2rt.engines.console import add_row, table_console
from sd2rt.engines.printable import printable
from sd2rt.runtime.bench.recording import STAGES

_TOLERANCE = 0.02
"""Relative difference between the two times per step up to which only one is shown."""
_ROWS = (
    ("it/s", "it_per_second", 1.0),
    ("images/s", "images_per_second", 1.0),
    ("s/image", "seconds_per_image", 1.0),
    ("ms/step", "seconds_per_step", 1e3),
    ("ms/step by yields", "seconds_per_yield", 1e3),
    ("host us/step", "host_us", 1.0),
    ("launch us/step", "launch_us", 1.0),
)


def show(result: dict[str, Any]) -> None:
    """Print a result: bundle and settings, process figures, figures of each case, and stages of each case."""
    console = table_console(160)
    bundle, settings = result["bundle"], result["settings"]
    _line(console, f"{bundle['name']}, kind {bundle['kind']}, {bundle['precision']}: {bundle['task']}")
    _line(
        console,
        f"{settings['steps']} steps of {settings['sampler']}, guidance {settings['guidance_scale']}; "
        f"{settings['backend']} in {settings['precision']} on {settings['device']}",
    )
    console.print()
    console.print(_process(result))
    console.print()
    console.print(_cases(result["cases"]))
    console.print()
    console.print(_stages(result["cases"]))


def show_comparison(comparison: dict[str, Any]) -> None:
    """Print a comparison, preceded by the differences in conditions."""
    console = table_console(160)
    console.print()
    for line in comparison["differences"]:
        _line(console, f"different: {line}")
    for which in ("new", "old"):
        names = comparison[f"only_{which}"]
        if names:
            _line(console, f"only in the {which} result: {', '.join(names)}")
    load = comparison["load_average"]
    _line(console, f"load average before: {load['new']}, was {load['old']}")
    table = _table("", "old", "new", "new/old", "")
    for name, figure in comparison["figures"].items():
        ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.3f}"
        # The ranges overlap: the ratio is within noise.
        noise = "~" if figure["apart"] is False else ""
        add_row(table, name, _number(figure["old"]), _number(figure["new"]), ratio, noise)
    console.print(table)


def _line(console: Console, text: str) -> None:
    """Print a line of text, some of which comes from a manifest or an earlier result."""
    console.print(printable(text))


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _process(result: dict[str, Any]) -> Table:
    """Table of child processes' first images, and of figures measured once."""
    table, first = _table("", "", "from", "to"), result["first_image"]
    if first is not None:
        table.add_row("process start to first image, s", *_spread(first["seconds"]))
        if first["peak_rss_bytes"] is not None:
            table.add_row("its peak memory, MB", *_spread(first["peak_rss_bytes"], 1e-6))
        table.add_row("first of these, with cold caches, s", _number(first["warmup_seconds"]))
    table.add_row("opening the bundle, s", _number(result["opening"]["seconds"]))
    table.add_row("peak memory, MB", _number(result["peak_rss_bytes"] * 1e-6))
    if result["device_bytes"] is not None:
        table.add_row("device memory in use, MB", _number(result["device_bytes"] * 1e-6))
    return table


def _cases(cases: Sequence[dict[str, Any]]) -> Table:
    """Table of each figure by case: median and range."""
    table = _table("median (10th to 90th percentile; range if under 10)", *map(_name, cases))
    by_yield = any(_differ(case) for case in cases)
    for label, key, scale in _ROWS:
        if key == "seconds_per_yield" and not by_yield:
            continue
        if any(key in case for case in cases):
            table.add_row(label, *(_cell(case.get(key), scale) for case in cases))
    for label, key in (("peak memory, MB", "peak_rss_bytes"), ("device memory in use, MB", "device_bytes")):
        if any(case[key] is not None for case in cases):
            table.add_row(label, *("" if case[key] is None else _number(case[key] * 1e-6) for case in cases))
    for label, key in (("warm-up, s", "seconds"), ("its first step, s", "first_step_seconds")):
        cells = ["" if case["warmup"] is None else _number(case["warmup"][key]) for case in cases]
        if any(cells):
            table.add_row(label, *cells)
    return table


def _stages(cases: Sequence[dict[str, Any]]) -> Table:
    table = _table("ms of a whole batch, by stage", *map(_name, cases))
    for stage in STAGES:
        if any(stage in case["stages"] for case in cases):
            table.add_row(stage, *(_cell(case["stages"].get(stage), 1e3) for case in cases))
    return table


def _name(case: dict[str, Any]) -> str:
    return f"{case['width']}x{case['height']} x {case['batch']}"


def _differ(case: dict[str, Any]) -> bool:
    whole, each = (case[key]["median"] for key in ("seconds_per_step", "seconds_per_yield"))
    return bool(abs(whole - each) > _TOLERANCE * whole)


def _cell(summary: dict[str, float] | None, scale: float) -> str:
    if summary is None:
        return ""
    low, high = (summary.get(inner, summary[outer]) for inner, outer in (("p10", "min"), ("p90", "max")))
    return f"{_number(summary['median'] * scale)} ({_number(low * scale)} to {_number(high * scale)})"


def _spread(summary: dict[str, float], scale: float = 1.0) -> list[str]:
    return [_number(summary[key] * scale) for key in ("median", "min", "max")]


def _number(value: float) -> str:
    """Format with at least four digits and no exponent."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
