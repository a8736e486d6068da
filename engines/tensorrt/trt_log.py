"""The logger passed to TensorRT: keeps the first error, and for a build the messages of its report."""

from __future__ import annotations

from functools import cache
from typing import Any


class TrtLog:
    """Keeps the first error since the last call of :meth:`take_error`; later ones are consequences of it.

    Args:
        module: the backend; see :func:`sd2rt.engines.tensorrt.packages.load_module`.
        record: also keep ``layer_lists`` and ``messages``, which grow without limit.
    """

    def __init__(self, module: Any, *, record: bool) -> None:
        self._levels, self._record = module.ILogger, record
        self._error: str | None = None
        self.layer_lists: list[str] = []
        """Messages that list an engine's layers."""
        self.messages: list[str] = []
        """All other messages that are not verbose, prefixed with their severity."""

    def log(self, severity: Any, message: str) -> None:
        """Called by the backend."""
        if self._record:
            # Of thousands of verbose messages, only the list of layers is used.
            if message.startswith("Layers:"):
                self.layer_lists.append(message)
            elif severity != self._levels.VERBOSE:
                self.messages.append(f"{severity.name.lower()}: {message.strip()}")
        if self._error is None and severity in (self._levels.ERROR, self._levels.INTERNAL_ERROR):
            self._error = " ".join(message.split())

    def take_error(self, length: int | None = 400) -> str:
        """Return and clear the first error, cut to ``length`` characters unless that is None."""
        error, self._error = self._error, None
        return "no reason given" if error is None else error[:length]


def open_log(module: Any, *, record: bool) -> TrtLog:
    """Create a log that also derives from the backend's ILogger, as its Python binding requires."""

    class Logger(TrtLog, module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            TrtLog.__init__(self, module, record=record)

    return Logger()


@cache
def shared_log(module: Any) -> TrtLog:
    """The log for running engines, one per backend: a backend keeps the first logger that a process passes to it."""
    return open_log(module, record=False)
