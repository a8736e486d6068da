"""Measured processes and memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import typer

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.bench.first_image import run_child
from sd2rt.runtime.bench.memory import forget_peak, peak_rss_bytes

MEGABYTES = 10**6


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_peak_is_the_childs() -> None:
    """In a process of its own: a child cannot be told from a parent that has been larger."""
    code = """
import sys
from sd2rt.runtime.bench.first_image import run_child
small = run_child([sys.executable, "-c", "bytearray(300_000_000)"])
large = bytearray(500_000_000)
hidden = run_child([sys.executable, "-c", "bytearray(300_000_000)"])
print(small.peak_rss_bytes > 300_000_000, hidden.peak_rss_bytes, small.seconds > 0)
"""
    done = subprocess.run(python(code), capture_output=True, text=True, check=True)
    assert done.stdout == "True None True\n"


def test_child_that_fails() -> None:
    with pytest.raises(typer.Exit) as raised:
        run_child(python("raise SystemExit(6)"))
    assert raised.value.exit_code == 6


def test_child_that_is_killed() -> None:
    with pytest.raises(EngineError, match="killed by SIGKILL"):
        run_child(python("import os; os.kill(os.getpid(), 9)"))


def test_peak_of_this_process() -> None:
    held = np.ones(40 * MEGABYTES // 8)
    before = peak_rss_bytes()
    assert before >= held.nbytes
    if forget_peak():
        now = peak_rss_bytes()
        # Pages are counted on each processor and added up late.
        assert now <= before + MEGABYTES
        more = np.ones(200 * MEGABYTES // 8)
        assert peak_rss_bytes() - now > more.nbytes // 2
