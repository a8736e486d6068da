"""Every error is one printable line, whatever it names."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from sd2rt.engines import errors

CLASSES: list[Any] = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, errors.Sd2rtError) and error is not errors.NotFiniteError
]


@pytest.mark.parametrize("error", [*CLASSES, lambda text: errors.NotFiniteError(text, "step")])
@pytest.mark.parametrize("text", ["\n", "a\nb", "\x1b[31mred", "\udfff", "\u202e", "\x9b", "plain é 雪"])
def test_messages_are_printable(error: Any, text: str) -> None:
    message = str(error(f"{text} cannot be read"))
    assert message.isprintable()
    assert message.endswith(" cannot be read")
    if text.isprintable():
        assert message == f"{text} cannot be read"
