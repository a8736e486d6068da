"""The modules that run engines, and the extras that they come with."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.tensorrt.packages import load_module

from ..simulated_gpu import SimulatedGpu
from ..simulated_tensorrt import make_tensorrt


@pytest.mark.parametrize(
    ("backend", "portable", "name", "extra"),
    [
        ("tensorrt", False, "tensorrt", "tensorrt"),
        ("tensorrt", True, "tensorrt_lean", "lean"),
        ("tensorrt-rtx", False, "tensorrt_rtx", "rtx"),
    ],
)
def test_modules(
    monkeypatch: pytest.MonkeyPatch, backend: Any, portable: bool, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, make_tensorrt(SimulatedGpu(), name))
    assert load_module(backend, portable).__name__ == name
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingDependencyError, match=rf"{name} cannot be loaded .*pip install '\.\[{extra}\]'"
    ):
        load_module(backend, portable)
