"""A command in a process of its own, with the time and the memory that it took."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_POLL_SECONDS = 0.02


class CommandError(Exception):
    """A measured command failed; the message ends in the last lines that it printed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A command that has ended well."""

    seconds: float
    """Wall time from before the process was made until it was gone."""
    cpu_seconds: float
    """User and system time, of all its threads and children."""
    peak_rss_bytes: int
    """Most memory in core over the process tree; files that are mapped count where they are in core."""
    peak_anonymous_bytes: int
    """The same without mapped files, seen every 20 ms."""
    others_cpu_seconds: float
    """What everything else on the machine used of its cores meanwhile; not 0 where the times say little."""
    stdout: str

    def facts(self) -> dict[str, float]:
        """Seconds and bytes, as a result has them."""
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "peak_rss_bytes": self.peak_rss_bytes,
            "others_cpu_seconds": round(self.others_cpu_seconds, 2),
        }


def environment(scratch: Path) -> dict[str, str]:
    """What a measured ``sd2rt`` process gets: a cache and compiled modules of its own under ``scratch``.

    A user's installation has its modules compiled; a checkout whose environment says not to has not. Where
    PYTHONPYCACHEPREFIX is set, compiled modules are there: PyTorch's and diffusers' take half a minute to make.
    """
    changed = {
        "SD2RT_CACHE_DIR": str(scratch / "cache"),
        "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX") or str(scratch / "pycache"),
        "HF_HUB_OFFLINE": "1",
    }
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPROFILEIMPORTTIME")
    return {name: value for name, value in os.environ.items() if name not in dropped} | changed


def sd2rt(*arguments: str | Path) -> list[str]:
    """The command line of ``sd2rt`` in this environment: what its script runs."""
    code = "import sys; from sd2rt.runtime.cli.main import script; script()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Measured:
    """Run ``command`` to its end.

    The kernel charges a child with the peak of the process that made it, so the caller's own should be small.

    Raises:
        CommandError: it ended with another code than 0.
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
        # wait4 has reaped it, which Popen is to know.
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.join()
        err.seek(0)
        out.seek(0)
        stdout = out.read()
        if process.returncode != 0:
            tail = "\n".join((stdout + err.read()).splitlines()[-12:])
            raise CommandError(f"{' '.join(command)}\nended with {process.returncode}:\n{tail}")
    return Measured(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        others_cpu_seconds=max(busy - usage.ru_utime - usage.ru_stime, 0.0),
        peak_rss_bytes=max(usage.ru_maxrss * 1024, watch.rss),
        peak_anonymous_bytes=watch.anonymous,
        stdout=stdout,
    )


def measure_stage(label: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Measured:
    """Run ``command`` as :func:`measure` does, with a line on standard error: its label, time and peak memory.

    Raises:
        CommandError: it ended with another code than 0.
    """
    print(f"{label} ...", end=" ", file=sys.stderr, flush=True)
    measured = measure(command, env)
    print(f"{measured.seconds:.1f} s, {measured.peak_rss_bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return measured


class OthersClock:
    """CPU time that everything but this process uses of the machine, within a ``with`` block."""

    seconds = 0.0
    """Set at the end of the block; above 0 where measured times say little."""

    def __enter__(self) -> Self:
        self._busy, self._own = busy_seconds(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        used = busy_seconds() - self._busy - (time.process_time() - self._own)
        self.seconds = round(max(used, 0.0), 2)


class _Watch(threading.Thread):
    """Looks at the memory of a process and its descendants until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.rss = self.anonymous = 0
        self._pid = pid

    def run(self) -> None:
        while not self.stop.wait(_POLL_SECONDS):
            found = [_memory(pid) for pid in tree(self._pid)]
            self.rss = max(self.rss, sum(rss for rss, _ in found))
            self.anonymous = max(self.anonymous, sum(anonymous for _, anonymous in found))


def busy_seconds() -> float:
    """CPU time that all processes have used since the machine started; 0 where the system does not say."""
    try:
        user, nice, system, _idle, _wait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    ticks = sum(map(int, (user, nice, system, *rest[:3])))
    return ticks / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[int]:
    """A process and all that it has started, as far as they are there."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return
    for child in children.split():
        yield from tree(int(child))


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes; zeros for a process that has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: line for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    rss, anonymous = (int(sizes[name].split()[1]) if name in sizes else 0 for name in ("VmRSS", "RssAnon"))
    return rss * 1024, anonymous * 1024
