from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.engines.path_argument import checked_path, is_path


class Odd:
    def __fspath__(self) -> bytes:
        return b"a"


@pytest.mark.parametrize("value", [5, None, b"a", ["a"], "a\0b", "a\ud800", Path("a\0"), Odd()])
def test_values_that_are_no_paths(value: Any) -> None:
    with pytest.raises(RequestError, match=r"^the thing is ") as refusal:
        checked_path(value, "the thing")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("value", ["a", Path("a"), "a" * 300, "ü", "\udcff"])
def test_paths(value: Any) -> None:
    assert checked_path(value, "the thing") == Path(value)
    assert is_path(str(value))
