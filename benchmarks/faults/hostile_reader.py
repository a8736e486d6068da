"""Read hostile files in a child process, with limits of time and memory.

The parent sends a line of JSON for each file, and the child answers with one: what the reader returned or raised, and
the peak of its memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.faults.hostile_files.case import ReaderName

_ADDRESS_SPACE = 24 << 30
"""Beyond the bound of any case: a fault ends the child, not the machine."""


class HostileReader:
    """A child process that reads files; a context manager that owns it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def read(self, reader: ReaderName, path: Path, seconds: float) -> dict[str, Any] | None:
        """Read a file. Returns the child's answer; None if none came in time, and ``died`` if the child ended."""
        if self._child is None:
            self._child = self._start()
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps({"reader": reader, "path": str(path)}).encode() + b"\n")
        child.stdin.flush()
        if not select.select([child.stdout], [], [], seconds)[0]:
            self._stop()
            return None
        line = child.stdout.readline()
        if not line:
            self._stop()
            return {"error": "died", "message": f"exit status {child.returncode}", "peak": 0, "code": None}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.hostile_reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        # Importing PyTorch takes seconds, which are no case's.
        child.stdout.readline()
        return child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._child = None


def _value(reader: ReaderName, path: str) -> str:
    """Read a file with the reader of a command; returns a summary of what it holds."""
    if reader == "image":
        from sd2rt.runtime.images.read import MAX_PIXELS, read_image

        return str(read_image(path, "the image", MAX_PIXELS)[1].size)
    if reader == "depth":
        from sd2rt.runtime.images.depth_map import load_depth

        return str(load_depth(path).shape)
    if reader == "recipe":
        from sd2rt.runtime.metadata.recipe import read_recipe

        return str(sorted(read_recipe(path).fields))[:200]
    if reader == "embedding":
        from sd2rt.runtime.prompts.textual_inversion import load_embedding

        return str(load_embedding(path, None, allow_pickle=True).vectors.shape)
    if reader == "lora":
        from sd2rt.engines.lora.file import read_lora

        return str(len(read_lora(path).layers))
    if reader == "result":
        from sd2rt.runtime.bench.comparison import read_result

        return str(len(read_result(Path(path))))
    if reader == "manifest":
        from sd2rt.engines.bundle.manifest import read_manifest

        return read_manifest(Path(path)).identity
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path, allow_pickle=True)
    return f"{checkpoint.variant} {len(checkpoint.tokenizer_json())}"


def _answer(reader: ReaderName, path: str) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    answer: dict[str, Any]
    try:
        answer = {"value": _value(reader, path)}
    except BaseException as error:
        answer = {
            "error": type(error).__name__,
            "code": getattr(error, "exit_code", None),
            "message": str(error)[:5000],
        }
    return {**answer, "peak": _peak() - before}


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def main() -> None:
    import sd2rt.export.checkpoints.checkpoint  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    answers = os.fdopen(os.dup(1), "w")
    # Libraries print.
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(_answer(task["reader"], task["path"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
