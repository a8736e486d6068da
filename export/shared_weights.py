"""A second graph on weights that are stored already: its initialisers point into another graph's data file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sd2rt.engines.errors import BuildError

_LARGEST_OWN_BYTES = 4096
"""Constants of the graph's own may be so large: whatever is larger is a weight."""


def share_weights(part: str, model: ir.Model, names: Collection[str], stored: Path) -> None:
    """Let ``model``, which is to be saved beside ``stored``, use the weights of that graph, found by their names.

    Other initialisers are small constants of its own.

    Raises:
        BuildError: a weight is not there, or is another one.
    """
    there = ir.load(stored).graph.initializers
    for name, value in model.graph.initializers.items():
        own = value.const_value
        assert own is not None
        found = there[name].const_value if name in names and name in there else None
        if found is None:
            if own.nbytes > _LARGEST_OWN_BYTES:
                raise BuildError(f"{part}: its weight {name} is not among those of {stored.parent.name}")
            continue
        if found.dtype != own.dtype or not np.array_equal(found.numpy(), own.numpy()):
            raise BuildError(f"{part}: its weight {name} is not the one of {stored.parent.name}")
        value.const_value = found
