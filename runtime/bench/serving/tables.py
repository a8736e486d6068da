"""Print a sweep, and plot it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.console import table_console
from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError
from sd2rt.engines.install_hint import install_hint

_SUFFIXES = (".png", ".svg")
_COLUMNS = ("requests/s", "times serial", "sent", "good", "images/s", "p50 s", "p90 s", "p99 s", "refused")


def show(result: dict[str, Any]) -> None:
    """Print a line for each rate."""
    console = table_console(160)
    settings = result["settings"]
    alone = ", ".join(f"{each['steps']} steps {each['seconds']:.3g} s" for each in result["alone"])
    console.print(f"{settings['model']} alone: {alone}; {result['serial_rate']:.3g} requests/s one by one")
    console.print(
        f"good: answered within {settings['objective']:g} times what the request takes alone", end="\n\n"
    )
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "refused" else "right")
    for case in result["cases"]:
        latency = case["latency_seconds"] or {}
        refused = ", ".join(
            f"{count} {status}" for status, count in case["statuses"].items() if status != "200"
        )
        table.add_row(
            f"{case['rate']:.3g}",
            f"{case['load']:.2f}",
            str(case["requests"]),
            "" if case["good"] is None else f"{case['good']:.1%}",
            f"{case['images_per_second']:.3g}",
            *(f"{latency[name]:.3g}" if latency else "" for name in ("p50", "p90", "p99")),
            refused,
        )
    console.print(table)


def check_plot(path: Path) -> None:
    """Check that a plot can be drawn, before anything is measured.

    Raises:
        RequestError: the name is neither a PNG's nor an SVG's.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise RequestError(f"--plot {path} is neither a .png nor an .svg file: use one of these endings")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingDependencyError(f"--plot needs matplotlib: {install_hint('plot')}") from None


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot good requests and latencies by rate.

    Raises:
        EngineError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    good, latency = figure.subplots(1, 2)
    cases = [case for case in result["cases"] if case["latency_seconds"] is not None]
    loads = [case["load"] for case in cases]
    good.plot(loads, [case["good"] for case in cases], "o-", color="#1b9e77", label="good")
    shares = [case["statuses"].get("200", 0) / case["requests"] for case in cases]
    good.plot(loads, shares, "s:", color="#7570b3", label="answered with an image")
    good.set_ylim(-0.03, 1.03)
    good.set_ylabel("share of the requests")
    for name, style in (("p50", "o-"), ("p90", "s--"), ("p99", "^:")):
        latency.plot(loads, [case["latency_seconds"][name] for case in cases], style, label=name)
    latency.set_ylabel("seconds to an image")
    latency.set_yscale("log")
    for axes in (good, latency):
        axes.set_xlabel("requests, in times of what one by one makes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    try:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lower().removeprefix("."), dpi=90)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error
