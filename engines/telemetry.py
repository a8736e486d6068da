"""Import packages that report their use over the network, with that switched off.

Each package decides while it is imported: a switch that is set later, or its own function, comes too late. A choice
of the user's, in the environment or in a file of consent, is left alone.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

_LOG = logging.getLogger(__name__)
_LOCK = threading.RLock()
_ABSENT = object()
_seen: set[str] = set()
"""Packages that were imported here, or whose earlier import was logged."""


class _Reporting(NamedTuple):
    """The switch of one package."""

    is_chosen: Callable[[], bool]
    """Returns whether the user has chosen."""
    switched_off: Callable[[], Any]
    """Context manager: off for an import in its block."""
    remedy: str


def import_without_telemetry(package: str) -> Any:
    """Import a package and return it; one that reports its use does not.

    The process's environment is changed only during the import, and at most once for each package. Safe to call from
    several threads. If other code imported the package first, that is too late: one warning is logged.

    Raises:
        ImportError: the package cannot be imported.
    """
    if package in _seen:
        return importlib.import_module(package)
    reporting = _REPORTING[package]
    with _LOCK:
        if package in sys.modules or reporting.is_chosen():
            if package not in _seen and not reporting.is_chosen():
                _LOG.warning(
                    "%s was imported before sd2rt could switch off its telemetry: %s",
                    package,
                    reporting.remedy,
                )
            module = importlib.import_module(package)
        else:
            with reporting.switched_off():
                module = importlib.import_module(package)
        _seen.add(package)
    return module


@contextmanager
def _variable(name: str) -> Iterator[None]:
    """Set an environment variable to 1 in the block; it was not set before."""
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextmanager
def _missing_package(name: str) -> Iterator[None]:
    """Make importing a package fail in the block, as if it were not installed."""
    modules = cast(dict[str, Any], sys.modules)
    before = modules.get(name, _ABSENT)
    modules[name] = None
    try:
        yield
    finally:
        if before is _ABSENT:
            modules.pop(name, None)
        else:
            modules[name] = before


def _is_set(*names: str) -> bool:
    return any(name in os.environ for name in names)


def _openvino_consent() -> bool:
    """Return whether the user has answered OpenVINO's question, which writes this file."""
    return os.path.exists(os.path.expanduser("~/intel/openvino_telemetry"))


_REPORTING = {
    "onnxruntime": _Reporting(
        lambda: _is_set("ORT_DISABLE_TELEMETRY"),
        lambda: _variable("ORT_DISABLE_TELEMETRY"),
        "set ORT_DISABLE_TELEMETRY=1",
    ),
    # It has no switch, but works without the package that reports.
    "openvino": _Reporting(
        _openvino_consent, lambda: _missing_package("openvino_telemetry"), "run 'opt_in_out --opt_out'"
    ),
    # Its module of settings: the package itself imports nothing until it is used.
    "huggingface_hub.constants": _Reporting(
        lambda: _is_set("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY"),
        lambda: _variable("HF_HUB_DISABLE_TELEMETRY"),
        "set HF_HUB_DISABLE_TELEMETRY=1",
    ),
}
