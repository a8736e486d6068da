"""Run a command and measure its time and memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_POLL_SECONDS = 0.02
_CONDITION_SECONDS = 0.01


class CommandError(Exception):
    """A measured command failed; the message ends with its last output lines."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of a command that succeeded."""

    seconds: float
    """Wall time from before the process starts until it has exited."""
    cpu_seconds: float
    """User and system time of all threads and children."""
    peak_rss_bytes: int
    """Peak resident memory of the process tree, including resident pages of mapped files."""
    peak_anonymous_bytes: int
    """Peak without mapped files, sampled every 20 ms."""
    others_cpu_seconds: float
    """CPU time that all other processes used meanwhile; if well above 0, the times are unreliable."""
    stdout: str

    def facts(self) -> dict[str, float]:
        """Seconds and bytes, as stored in a result."""
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "peak_rss_bytes": self.peak_rss_bytes,
            "others_cpu_seconds": round(self.others_cpu_seconds, 2),
        }


def environment(scratch: Path) -> dict[str, str]:
    """Environment of a measured ``sd2rt`` process: a separate cache and bytecode folder under ``scratch``.

    A user's installation has compiled bytecode, so settings that suppress it are dropped. An existing
    PYTHONPYCACHEPREFIX is kept: compiling PyTorch and diffusers takes half a minute.
    """
    changed = {
        "SD2RT_CACHE_DIR": str(scratch / "cache"),
        "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX") or str(scratch / "pycache"),
        "HF_HUB_OFFLINE": "1",
    }
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPROFILEIMPORTTIME")
    return {name: value for name, value in os.environ.items() if name not in dropped} | changed


def sd2rt(*arguments: str | Path) -> list[str]:
    """Command line that runs ``sd2rt`` in this interpreter, as the installed script does."""
    code = "import sys; from sd2rt.launch import script; script()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Measured:
    """Run ``command`` and wait for it.

    The kernel counts the parent's memory at the fork towards the child's peak, so the caller should be small.

    Raises:
        CommandError: the exit code is not 0.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        busy, start = busy_seconds(), time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env)
        watch = _Watch(process.pid)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            watch.stop.set()
        seconds, busy = time.perf_counter() - start, busy_seconds() - busy
        # wait4 has reaped the process; without its code, Popen would wait again.
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.join()
        err.seek(0)
        out.seek(0)
        stdout = out.read()
        if process.returncode != 0:
            tail = "\n".join((stdout + err.read()).splitlines()[-12:])
            raise CommandError(f"{' '.join(command)}\nexited with {process.returncode}:\n{tail}")
    return Measured(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        others_cpu_seconds=max(busy - usage.ru_utime - usage.ru_stime, 0.0),
        peak_rss_bytes=max(usage.ru_maxrss * 1024, watch.rss),
        peak_anonymous_bytes=watch.anonymous,
        stdout=stdout,
    )


def measure_stage(label: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Measured:
    """Run ``command`` like :func:`measure`, and print its label, time and peak memory to standard error.

    Raises:
        CommandError: the exit code is not 0.
    """
    print(f"{label} ...", end=" ", file=sys.stderr, flush=True)
    measured = measure(command, env)
    print(f"{measured.seconds:.1f} s, {measured.peak_rss_bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return measured


class OthersClock:
    """Measure the CPU time of all other processes during a ``with`` block."""

    seconds = 0.0
    """Set at the end of the block; if well above 0, the measured times are unreliable."""

    def __enter__(self) -> Self:
        self._busy, self._this_process = busy_seconds(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        used = busy_seconds() - self._busy - (time.process_time() - self._this_process)
        self.seconds = round(max(used, 0.0), 2)


class _Watch(threading.Thread):
    """Sample the memory of a process and its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.rss = self.anonymous = 0
        self._pid = pid

    def run(self) -> None:
        while not self.stop.wait(_POLL_SECONDS):
            sizes = [memory(pid) for pid in tree(self._pid)]
            self.rss = max(self.rss, sum(rss for rss, _ in sizes))
            self.anonymous = max(self.anonymous, sum(anonymous for _, anonymous in sizes))


def busy_seconds() -> float:
    """CPU time of all processes since boot; 0 if the system does not report it."""
    try:
        user, nice, system, _idle, _wait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    ticks = sum(map(int, (user, nice, system, *rest[:3])))
    return ticks / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its living descendants."""
    yield pid
    # A child belongs to the thread that started it.
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:
            continue
        for child in found:
            yield from tree(int(child))


def memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes; zeros for a process that has exited."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: line for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    rss, anonymous = (int(sizes[name].split()[1]) if name in sizes else 0 for name in ("VmRSS", "RssAnon"))
    return rss * 1024, anonymous * 1024


def command_line(pid: int) -> str:
    """Return a process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_until(holds: Callable[[], object], timeout: float = 60) -> float:
    """Wait until a condition holds; return the seconds that took.

    Raises:
        TimeoutError: it took too long.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > timeout:
            raise TimeoutError(f"nothing within {timeout:g} s")
        time.sleep(_CONDITION_SECONDS)
    return time.monotonic() - began
