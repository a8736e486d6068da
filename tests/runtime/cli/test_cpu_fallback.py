"""Commands whose operators would run on the CPU instead of the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...engines.onnxruntime.simulated_cuda import SimulatedCuda
from ..conftest import Command, Refused

COMMANDS = [
    ("run", ("a fox", "--steps", "2", "--seed", "1")),
    ("bench", ("--steps", "2", "--repetitions", "1", "--no-first-image")),
]


@pytest.mark.parametrize(("name", "words"), COMMANDS)
def test_it_is_refused_unless_allowed(
    sd2rt: Command,
    refused: Refused,
    small_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: tuple[str, ...],
) -> None:
    SimulatedCuda(cpu_operators=("LayerNormalization",)).install(monkeypatch)
    command = (name, small_bundle, *words, "--device", "cuda", "--threads", "1")
    reason = refused(5, *command)
    assert "runs operators on the CPU (" in reason
    assert " LayerNormalization)" in reason
    assert "--allow-cpu-fallback" in reason
    done = sd2rt(*command, "--allow-cpu-fallback")
    assert done.code == 0, done.err
    assert "runs operators on the CPU (" in done.err
