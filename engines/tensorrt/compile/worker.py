"""The process that compiles one engine: what a compiler takes or breaks is its own, and stopping it is at once.

It reads a :class:`~sd2rt.engines.tensorrt.compile.worker_protocol.BuildTask` from standard input and answers in lines
of JSON on standard output; what the backend's libraries print themselves goes to standard error.
"""

from __future__ import annotations

import os
import sys
import warnings

from sd2rt.engines.errors import Sd2rtError
from sd2rt.engines.tensorrt.compile.compiler import compile_engine
from sd2rt.engines.tensorrt.compile.worker_protocol import Answer, BuildTask


def main() -> None:
    """Compile what standard input says."""
    task = BuildTask.model_validate_json(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore", DeprecationWarning)
    last = -1.0

    def say(answer: Answer) -> None:
        try:
            print(answer.model_dump_json(), file=answers, flush=True)
        except BrokenPipeError:
            # Whoever asked is gone.
            os._exit(1)

    def progress(fraction: float) -> None:
        nonlocal last
        if abs(fraction - last) >= 0.01:
            last = fraction
            say(Answer(fraction=fraction))

    try:
        say(Answer(built=compile_engine(task, progress)))
    except Sd2rtError as error:
        say(Answer(error=str(error), exit_code=error.exit_code))


if __name__ == "__main__":
    main()
