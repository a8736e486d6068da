"""Plot a scheduling result: objectives met, and slowdowns, by rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = ("#888888", "#e6ab02", "#d95f02", "#1f77b4", "#1b9e77")


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Plot each policy's curves to a PNG or SVG. Bars are minimum and maximum over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    met, slow = figure.subplots(1, 2)
    for (name, cases), colour in zip(result["policies"].items(), _COLOURS, strict=True):
        for axes, key in ((met, "met"), (slow, "slowdown_p95")):
            middle = [case[key]["median"] for case in cases]
            spread = [[abs(case[key][end] - case[key]["median"]) for case in cases] for end in ("min", "max")]
            axes.errorbar(
                result["rates"], middle, spread, marker="o", ms=4, capsize=3, color=colour, label=name
            )
    for goal in result["goals"]:
        met.plot(goal["rate"], goal["met"], "k_", ms=18, mew=2)
    met.plot([], [], "k_", ms=12, mew=2, label="goal")
    met.set_ylabel(f"finished within {result['objective']:g} times its own time")
    met.set_ylim(-0.03, 1.03)
    slow.set_ylabel("latency over own time, 95th percentile")
    slow.set_yscale("log")
    slow.axhline(result["objective"], ls=":", color="black", lw=1, label="objective")
    for axes in (met, slow):
        axes.set_xlabel("requests, in times of what batches of 1 can do")
        axes.grid(alpha=0.3)
    marks = [axes.get_legend_handles_labels() for axes in (met, slow)]
    legend = {
        label: handle for handles, labels in marks for handle, label in zip(handles, labels, strict=True)
    }
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=90)
