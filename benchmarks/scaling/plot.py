"""Plot a scaling result: time in the upper row, memory in the lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TIME, _MEMORY, _GREY = "#1f77b4", "#d95f02", "#888888"


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Plot a result's curves to a PNG or SVG. Time axes are logarithmic: linear growth has slope 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    curves = result["curves"]
    figure = Figure(figsize=(3.1 * len(curves), 5.6), layout="constrained")
    grid = figure.subplots(2, len(curves), squeeze=False)
    for column, curve in enumerate(curves):
        for row, key in enumerate(("seconds", "peak_rss_bytes")):
            axes = grid[row][column]
            if key not in curve:
                axes.set_axis_off()
                continue
            scale = 1.0 if key == "seconds" else 1e-6
            middle = [each["median"] * scale for each in curve[key]]
            spread = [
                [abs(each[end] - each["median"]) * scale for each in curve[key]] for end in ("min", "max")
            ]
            colour = _TIME if key == "seconds" else _MEMORY
            axes.errorbar(
                curve["x"], middle, spread, marker="o", ms=4, capsize=3, color=colour, label="measured"
            )
            if key == "seconds":
                first = middle[0]
                linear = [first * x / curve["x"][0] for x in curve["x"]]
                flops = [first * each / curve["flops"][0] for each in curve["flops"]]
                axes.plot(curve["x"], linear, ":", color=_GREY, label="linear")
                axes.plot(curve["x"], flops, "--", color="black", lw=1, label="like the FLOPs")
                axes.set_title(
                    f"{curve['name']}: time ~ x^{curve['time_exponent']['median']:.2f}", fontsize=10
                )
                axes.set_yscale("log")
                axes.legend(fontsize=8)
            else:
                axes.set_title(
                    f"memory above opening ~ x^{curve['memory_exponent']['median']:.2f}", fontsize=10
                )
                axes.set_ylim(0, 1.15 * max(middle))
            axes.set_xscale("log")
            names = [f"{round(x**0.5)}²" if curve["grows"] == "pixels" else f"{x:g}" for x in curve["x"]]
            axes.set_xticks(curve["x"], names, fontsize=8)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.tick_params(axis="y", labelsize=8, which="both")
            axes.set_xlabel(curve["grows"], fontsize=9)
            axes.grid(alpha=0.3)
            if key == "seconds":
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        grid[0][column].set_ylabel("seconds" if column == 0 else "")
        grid[1][column].set_ylabel("peak memory, MB" if column == 0 else "")
    figure.savefig(path, dpi=90)
