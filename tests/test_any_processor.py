"""Tests again as other processors run them: PyTorch's code for each level of x86-64, and other mathematics libraries.

Neither can be changed in a process that has loaded PyTorch, so each is a session of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sd2rt.engines.bundle.model_kinds import KINDS

from .conftest import INEXACT_TORCH, SHARED
from .made_once import MadeOnce
from .parity.table import TABLE_VARIABLE

TESTS = Path(__file__).parent

LEVEL = "ATEN_CPU_CAPABILITY"
LEVELS: dict[str, tuple[str, ...]] = {
    "default": (),
    "avx2": ("avx2", "fma"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"),
}
"""Levels of PyTorch's code, and the flags of processors that have them."""

SELECTED = ("runtime/samplers", "runtime/rng", "runtime/pipeline/test_seeds.py")
"""Folders and files whose bounds may depend on the processor's arithmetic."""


def own_level() -> str:
    return torch.backends.cpu.get_cpu_capability().lower()


def flags() -> set[str]:
    """Instruction sets of this processor; none where Linux does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def plainest() -> dict[str, str]:
    """The environment of a processor that has no more than PyTorch, MKL and NumPy ask for.

    MKL then has the code that it runs on AMD's processors. Its float32 square root is not correctly rounded there in
    a fifth of the values, and in a hundredth on Intel's.
    """
    extensions = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return {LEVEL: "default", "MKL_CBWR": "COMPATIBLE", "NPY_DISABLE_CPU_FEATURES": " ".join(extensions)}


def run(environment: dict[str, str], tests: list[str], folder: Path, shared: Path) -> str:
    """What a session of tests prints; it finds the bundles that this one has made, and must pass."""
    ours = (LEVEL, INEXACT_TORCH, TABLE_VARIABLE)
    inherited = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-v", "--hypothesis-profile=ci", "-p", "no:cacheprovider"]
    own = f"{Path(__file__)}::{test_this_session_has_the_arithmetic_that_it_is_asked_for.__name__}"
    child = subprocess.run(
        [*command, f"--basetemp={folder}", own, *tests],
        cwd=TESTS.parent,
        env={**inherited, **environment, SHARED: str(shared)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        _, _, failures = child.stdout.partition("= FAILURES =")
        pytest.fail(f"{environment}:\n{(failures or child.stdout)[-8000:]}", pytrace=False)
    return child.stdout


def test_this_session_has_the_arithmetic_that_it_is_asked_for() -> None:
    assert own_level() == os.environ.get(LEVEL, own_level())
    values = np.linspace(0.01, 1, 5000, dtype=np.float32)
    found = torch.from_numpy(values).sqrt().numpy()
    np.testing.assert_array_max_ulp(found, np.sqrt(values), maxulp=2)
    wrong = float((found != np.sqrt(values)).mean())
    assert wrong > 0.1 if INEXACT_TORCH in os.environ else wrong < 0.3


@pytest.mark.parametrize("level", LEVELS)
def test_samplers_and_noise_at_every_level(level: str, tmp_path: Path, made_once: MadeOnce) -> None:
    if level == own_level():
        pytest.skip(f"all tests of this session run at {level}")
    if missing := set(LEVELS[level]) - flags():
        pytest.skip(f"this processor has no {' and no '.join(sorted(missing))}")
    # At the plainest level sqrt, log and linspace of float32 are an ulp off in a fifth of the values besides.
    environment = {**plainest(), INEXACT_TORCH: "1"} if level == "default" else {LEVEL: level}
    run(environment, [str(TESTS / name) for name in SELECTED], tmp_path / "session", made_once.shared)


def test_a_picture_of_each_kind_on_the_plainest_processor(tmp_path: Path, made_once: MadeOnce) -> None:
    pictures = f"{TESTS / 'parity' / 'test_pictures.py'}::test_batches"
    printed = run(plainest(), [pictures], tmp_path / "session", made_once.shared)
    assert [kind for kind in KINDS if f"test_batches[{kind}-" not in printed] == []
