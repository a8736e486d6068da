"""Plots of samplers: the noise level and timestep of each network call, and the weights of the next sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.bundle.sampler_config import STATE_SLOTS
from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError
from sd2rt.engines.install_hint import install_hint
from sd2rt.runtime.samplers.plan import Plan

_SUFFIXES = (".png", ".svg")
_ROW_INCHES = 1.9
_LABELS = ("sample S_0", *(f"memory S_{k}" for k in range(1, STATE_SLOTS)), "network D", "fresh noise")
_TICKS = (-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20)
# Distinguishable by the colour blind: Okabe and Ito's colours.
_COLOURS = ("#000000", "#009E73", "#56B4E9", "#CC79A7", "#B8860B", "#D55E00", "#0072B2")


def draw(plans: Mapping[str, Plan], path: Path) -> None:
    """Plot a row for each plan: noise levels, timesteps, and the weights of the next sample.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        RequestError: the name is neither a PNG's nor an SVG's.
        EngineError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise RequestError(f"--plot {path} is neither a .png nor an .svg file: use one of these endings")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise MissingDependencyError(f"--plot needs matplotlib: {install_hint('plot')}") from None
    figure = Figure(figsize=(11, 0.6 + _ROW_INCHES * len(plans)), layout="constrained")
    axes = figure.subplots(len(plans), 3, squeeze=False)
    for row, (name, plan) in zip(axes, plans.items(), strict=True):
        _draw_row(row, name, plan)
    for axis, title in zip(
        axes[0], ("noise level sigma", "timestep", "weights of the next sample"), strict=True
    ):
        axis.set_title(title, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("network call", fontsize=8)
    for axis in axes.flat:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = {line.get_label(): line for row in axes for line in row[2].get_lines()}
    shown = [label for label in _LABELS if label in lines]
    figure.legend(
        [lines[label] for label in shown], shown, loc="outside lower right", ncols=len(shown), fontsize=8
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            figure.savefig(
                temporary, format=suffix[1:], dpi=100, metadata={"Date": None} if suffix == ".svg" else None
            )
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror or error}") from error


def _draw_row(axes: Any, name: str, plan: Plan) -> None:
    calls = np.arange(1, len(plan.steps) + 1)
    levels, timesteps, weights = axes
    levels.plot(calls, [step.level for step in plan.steps], ".-", color="#0072B2")
    levels.set_yscale("log")
    levels.set_ylabel(name, fontsize=10)
    timesteps.plot(calls, [step.timestep for step in plan.steps], ".-", color="#D55E00")
    coefficients = np.array([step.update[0] for step in plan.steps])  # [N, K+3]
    for column, label, colour in zip(coefficients.T, _LABELS, _COLOURS, strict=True):
        if column.any():
            weights.plot(calls, column, ".-", color=colour, label=label, linewidth=0.5)
    # Linear up to 1, logarithmic beyond.
    weights.set_yscale("symlog", linthresh=1)
    low, high = weights.get_ylim()
    shown = [tick for tick in _TICKS if low <= tick <= high]
    weights.set_yticks(shown, [f"{tick:g}" for tick in shown])
    weights.minorticks_off()
    weights.axhline(0, color="#bbbbbb", linewidth=0.5, zorder=0)
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
