"""Inputs and fp32 outputs of each part, computed where PyTorch and a bundle are, compared where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = ("text_encoder", "denoiser", "decoder")
"""The parts that a text-to-image call runs."""

Arrays = dict[str, NDArray[Any]]


class Reference:
    """A part's inputs and fp32 outputs, stored as one ``.npz`` file."""

    def __init__(self, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs = inputs, outputs

    def save(self, path: Path) -> None:
        """Write the arrays, inputs under ``in/`` and outputs under ``out/``."""
        named = {f"in/{name}": array for name, array in self.inputs.items()}
        named |= {f"out/{name}": array for name, array in self.outputs.items()}
        np.savez(path, **named)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Reference:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(*({n[len(p) :]: a for n, a in arrays.items() if n.startswith(p)} for p in ("in/", "out/")))

    def errors(self, outputs: Arrays) -> dict[str, float]:
        """Relative and largest error over all float outputs; infinite where a value is not finite."""
        pairs = [
            (outputs[name].astype(np.float64), expected.astype(np.float64))
            for name, expected in self.outputs.items()
            if expected.dtype.kind == "f"
        ]
        if not all(np.isfinite(output).all() for output, _ in pairs):
            return {"relative_error": float("inf"), "error_of_max": float("inf")}
        square = sum(float(((output - expected) ** 2).sum()) for output, expected in pairs)
        norm = sum(float((expected**2).sum()) for _, expected in pairs)
        return {
            "relative_error": (square / norm) ** 0.5,
            "error_of_max": max(float(np.abs(o - e).max() / np.abs(e).max()) for o, e in pairs),
        }


def one_step(inputs: Arrays) -> Arrays:
    """The denoiser's inputs with an update that returns the guided prediction alone, so that no latents dilute it."""
    update = np.zeros_like(inputs["update"])
    slots = update.shape[1]
    update[:, 0, slots] = 1
    return {**inputs, "update": update}
