"""Processes that end with their parent's process, and not with one of its threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sd2rt.runtime.server.worker.parent_death import start_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")

CHILD = """
import sys, threading, time
from sd2rt.runtime.server.worker.parent_death import die_with_parent
die_with_parent(int(sys.argv[1]))
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import os, sys, time
from sd2rt.runtime.server.worker.parent_death import start_process
command = (sys.executable, "-P", "-c", sys.argv[1], str(os.getpid()))
print(start_process(command).result().pid, flush=True)
time.sleep(600)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_it_outlives_the_thread_that_asked_for_it() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = (sys.executable, "-P", "-c", CHILD, str(os.getpid()))
        started.append(start_process(command, stdout=subprocess.PIPE).result())

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    (child,) = started
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_it_ends_with_its_parent() -> None:
    """No socket connects the two."""
    command = (sys.executable, "-P", "-c", PARENT, CHILD)
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
    assert is_alive(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_ends_if_its_parent_is_gone_already() -> None:
    command = (sys.executable, "-P", "-c", CHILD, "1000000000")
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
