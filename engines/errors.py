"""Every error that sd2rt raises on purpose, and the exit code that the command line gives it.

    Sd2rtError
    ├── CheckpointError          3   the weights that were given cannot be used
    ├── BuildError               4   export or engine build failed
    ├── BundleError              3   a bundle is damaged, unsafe, or has nothing that fits
    ├── RequestError             2   what was asked for cannot be done
    ├── EngineError              5   a run failed: out of memory, not finite, a device error
    └── MissingDependencyError   6   no usable backend, or an extra that is not installed

A message is one line: what was wrong, with the value, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class Sd2rtError(Exception):
    """Base of all of them; ``exit_code`` is what the command line exits with."""

    exit_code: ClassVar[int] = 1


class CheckpointError(Sd2rtError):
    """The weights that were given are missing, damaged, unsafe, or of another model."""

    exit_code = 3


class BuildError(Sd2rtError):
    """An export or an engine build failed; nothing half-written is left in the bundle's place."""

    exit_code = 4


class BundleError(Sd2rtError):
    """A bundle is missing, damaged or unsafe, or holds nothing that fits this machine."""

    exit_code = 3


class RequestError(Sd2rtError):
    """A request asks for what cannot be done."""

    exit_code = 2


class EngineError(Sd2rtError):
    """A run failed on the device: out of memory, a result that is not finite, a driver's error."""

    exit_code = 5


class MissingDependencyError(Sd2rtError):
    """A backend or an extra that the work needs is not there."""

    exit_code = 6


def engine_error(what: str, error: Exception) -> EngineError:
    """What a backend raised, as one line that begins with ``what``, and what to do where memory ran out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with places in its sources.
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    reason = (told or lines or [type(error).__name__])[0]
    no_memory = ("Failed to allocate memory", "bad allocation", "bad_alloc")
    if isinstance(error, MemoryError) or any(words in str(error) for words in no_memory):
        return EngineError(f"{what}: out of memory ({reason}): ask for a smaller --size or batch")
    return EngineError(f"{what}: {reason}")
