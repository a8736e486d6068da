"""The child process that compiles one engine, so that a crash, a leak or an interrupt stays confined to it.

It reads a :class:`~sd2rt.engines.tensorrt.compile.worker_protocol.BuildTask` from standard input and writes lines of
JSON to standard output. Output of the backend's libraries goes to standard error.
"""

from __future__ import annotations

import os
import sys
import warnings

from sd2rt.engines.errors import Sd2rtError
from sd2rt.engines.tensorrt.compile.compiler import compile_engine
from sd2rt.engines.tensorrt.compile.worker_protocol import Answer, BuildTask


def main() -> None:
    """Compile the task read from standard input."""
    task = BuildTask.model_validate_json(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore", DeprecationWarning)
    last = -1.0

    def send(answer: Answer) -> None:
        try:
            print(answer.model_dump_json(), file=answers, flush=True)
        except BrokenPipeError:
            # The parent process has ended.
            os._exit(1)

    def progress(fraction: float) -> None:
        nonlocal last
        if abs(fraction - last) >= 0.01:
            last = fraction
            send(Answer(fraction=fraction))

    try:
        send(Answer(built=compile_engine(task, progress)))
    except Sd2rtError as error:
        send(Answer(error=str(error), exit_code=error.exit_code))


if __name__ == "__main__":
    main()
