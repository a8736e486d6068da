"""Exception classes of sd2rt, with their exit codes on the command line.

    Sd2rtError
    ├── CheckpointError          3   a checkpoint or other weights cannot be used
    ├── BuildError               4   export or engine build failed
    ├── BundleError              3   a bundle is damaged, unsafe, or lacks what this machine needs
    ├── RequestError             2   a request is invalid or unsupported
    ├── EngineError              5   a run failed: not finite, a device error
    │   ├── OutOfMemoryError     5   the device has too little memory for this call
    │   ├── NotFiniteError       5   one image's result is not finite; the device can go on
    │   └── UnsafeContentError   2   the safety check refuses one image; the device can go on
    └── MissingDependencyError   6   no usable backend, or an extra that is not installed

Messages are one line: the problem, the offending value, and the remedy.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from sd2rt.engines.printable import printable


class Sd2rtError(Exception):
    """Base class of all sd2rt errors; ``exit_code`` is the exit status of the command line."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        # Messages name paths and other foreign text.
        return printable(super().__str__())


class CheckpointError(Sd2rtError):
    """A checkpoint or other weights are missing, damaged, unsafe, or of another model."""

    exit_code = 3


class BuildError(Sd2rtError):
    """An export or engine build failed. No partially written bundle is left at the target path."""

    exit_code = 4


class BundleError(Sd2rtError):
    """A bundle is missing, damaged or unsafe, or has no part or engine that this machine can run."""

    exit_code = 3


class RequestError(Sd2rtError):
    """A request is invalid, or asks for something unsupported."""

    exit_code = 2


class EngineError(Sd2rtError):
    """A run failed on the device: out of memory, a non-finite result, or a driver error."""

    exit_code = 5


class OutOfMemoryError(EngineError):
    """The device has too little memory for this call; a smaller one may succeed."""


class NotFiniteError(EngineError):
    """A result of one image is not finite. The device, and other images, can go on."""

    def __init__(self, message: str, stage: Literal["step", "decode"]) -> None:
        super().__init__(message)
        self.stage = stage


class UnsafeContentError(EngineError):
    """The safety check refuses one image, which is not passed on. The device, and other images, can go on."""

    exit_code = 2


class MissingDependencyError(Sd2rtError):
    """A required backend or optional dependency is not installed."""

    exit_code = 6


def engine_error(context: str, error: Exception) -> EngineError:
    """Convert a backend's exception to one line that starts with ``context``; suggests a remedy if memory ran out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO's messages start with locations in its source code.
    reasons = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    reason = (reasons or lines or [type(error).__name__])[0]
    no_memory = ("Failed to allocate memory", "bad allocation", "bad_alloc")
    if isinstance(error, MemoryError) or any(words in str(error) for words in no_memory):
        return OutOfMemoryError(f"{context}: out of memory ({reason}): ask for a smaller --size or batch")
    return EngineError(f"{context}: {reason}")
