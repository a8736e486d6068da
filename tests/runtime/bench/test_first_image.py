"""Measuring child processes and memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import typer

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.bench.first_image import run_child
from sd2rt.runtime.bench.memory import peak_rss_bytes, reset_peak

MEGABYTES = 10**6


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_peak_is_the_childs() -> None:
    """In a separate process, because a child's peak is hidden by that of a larger parent."""
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
    if reset_peak():
        now = peak_rss_bytes()
        # The kernel counts pages per CPU and sums them with a delay.
        assert now <= before + MEGABYTES
        more = np.ones(200 * MEGABYTES // 8)
        assert peak_rss_bytes() - now > more.nbytes // 2
