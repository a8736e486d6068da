"""Process of one stage: prints and writes its records as they come, then its outcome.

python -m benchmarks.gpu.worker STAGE VARIANT RECORDS OUTCOME < settings.json
"""

from __future__ import annotations

import json
import math
import resource
import sys
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import STAGES, CannotRunError, Stage
from benchmarks.gpu.tables import shown
from benchmarks.recording.process import CommandError


def main() -> None:
    name, variant, records, outcome = sys.argv[1:]
    settings = Settings.from_json(sys.stdin.read())
    stage = next(stage for stage in STAGES if stage.name == name)
    outcome_record: dict[str, Any] = {"outcome": "done", "reason": None}
    with Path(records).open("w", encoding="utf-8") as file:
        try:
            check(stage, settings)
            for result in stage.work(settings, variant):
                record = sound(result)
                file.write(json.dumps(record) + "\n")
                file.flush()
                print("   ", ", ".join(f"{key} {shown(value)}" for key, value in record.items()), flush=True)
        except CannotRunError as error:
            outcome_record = {"outcome": "skipped", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            outcome_record = {"outcome": "failed", "reason": failure(error)}
    peak_kb = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    # Kilobytes on Linux.
    Path(outcome).write_text(json.dumps({**outcome_record, "peak_rss_bytes": peak_kb * 1024}))


def failure(error: Exception) -> str:
    """One line for an error; names its type unless the message stands alone."""
    # sd2rt's own errors are one line that names the remedy.
    complete = hasattr(error, "exit_code")
    text = str(error)
    if isinstance(error, CommandError):
        # The command's last line has the reason; the worker's log has the rest.
        text, complete = text.splitlines()[-1], True
    line = " ".join(text.split())[:600]
    return line if complete else f"{type(error).__name__}: {line}"


def sound(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by strings."""
    if isinstance(value, dict):
        return {key: sound(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def check(stage: Stage, settings: Settings) -> None:
    """Check a stage's requirements.

    Raises:
        CannotRunError: a package or a GPU is missing.
    """
    for package in stage.packages:
        if not _is_installed(package):
            raise CannotRunError(f"{package} is not installed")
    if settings.device == "cpu":
        if not stage.cpu:
            raise CannotRunError("needs an NVIDIA GPU, and this is a dry run")
    elif not stage.anywhere and not any(_gpus()):
        raise CannotRunError("cuda-python and torch find no NVIDIA GPU")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        # A dotted name whose parent is missing.
        return False


def _gpus() -> Iterator[bool]:
    from sd2rt.engines.cuda.gpu_info import gpu_at_hand

    yield gpu_at_hand() is not None
    if _is_installed("torch"):
        import torch

        yield torch.cuda.is_available()


if __name__ == "__main__":
    main()
