"""Start and control the child process that compiles an engine."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO

from sd2rt.engines.errors import (
    BuildError,
    BundleError,
    MissingDependencyError,
    RequestError,
    Sd2rtError,
)
from sd2rt.engines.tensorrt.compile.worker_protocol import Answer, BuildTask, Built

_ERRORS: dict[int, type[Sd2rtError]] = {
    error.exit_code: error for error in (BuildError, BundleError, RequestError, MissingDependencyError)
}


def compile_in_process(task: BuildTask, progress: Callable[[float], None] = lambda fraction: None) -> Built:
    """Compile an engine in a child process, which is killed if this one is interrupted.

    Raises:
        BuildError: the backend failed or crashed.
        RequestError: the backend does not support the options.
        MissingDependencyError: the backend is not installed, or needs a GPU and there is none.
    """
    answer: Answer | None = None
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sd2rt.engines.tensorrt.compile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # Ctrl-C in a terminal reaches only the parent, which then kills the child.
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(task.model_dump_json().encode())
            for line in process.stdout:
                answer = Answer.model_validate_json(line)
                if answer.fraction:
                    progress(answer.fraction)
            process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if answer is not None and answer.built is not None:
            return answer.built
        if answer is not None and answer.error is not None:
            raise _ERRORS.get(answer.exit_code, BuildError)(answer.error)
        raise BuildError(f"{task.name}: {_describe_exit(process.returncode, errors)}")


def _describe_exit(code: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    last = f": {' '.join(lines[-1].split())[:200]}" if lines else ""
    if code == -signal.SIGKILL:
        return f"the compiler was killed, most likely because memory ran out{last}"
    end = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"the compiler {end}{last}"
