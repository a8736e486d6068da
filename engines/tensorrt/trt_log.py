"""The log that TensorRT writes to: its first error, and of a build everything that its report tells."""

from __future__ import annotations

from functools import cache
from typing import Any


class TrtLog:
    """Keeps the first error since the last one was taken: those that follow come of it.

    Args:
        module: the backend; see :func:`sd2rt.engines.tensorrt.packages.load_module`.
        record: keep ``layer_lists`` and ``messages``, which grow as long as the log lives.
    """

    def __init__(self, module: Any, *, record: bool) -> None:
        self._levels, self._record = module.ILogger, record
        self._error: str | None = None
        self.layer_lists: list[str] = []
        """Texts that list an engine's layers."""
        self.messages: list[str] = []
        """All others that are no details, after their severity."""

    def log(self, severity: Any, message: str) -> None:
        """Called by the backend."""
        if self._record:
            # Thousands of verbose lines, of which one is read: the list of layers.
            if message.startswith("Layers:"):
                self.layer_lists.append(message)
            elif severity != self._levels.VERBOSE:
                self.messages.append(f"{severity.name.lower()}: {message.strip()}")
        if self._error is None and severity in (self._levels.ERROR, self._levels.INTERNAL_ERROR):
            self._error = " ".join(message.split())

    def take_error(self, length: int | None = 400) -> str:
        """Hand out the first error since the last call, its first ``length`` characters; None for all of them."""
        error, self._error = self._error, None
        return "it gave no reason" if error is None else error[:length]


def open_log(module: Any, *, record: bool) -> TrtLog:
    """A log of the backend's own class, which it takes from Python."""

    class Logger(TrtLog, module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            TrtLog.__init__(self, module, record=record)

    return Logger()


@cache
def shared_log(module: Any) -> TrtLog:
    """The one log of a backend that runs engines: a backend keeps the first log that a process gives it."""
    return open_log(module, record=False)
