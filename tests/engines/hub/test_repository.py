from __future__ import annotations

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.engines.hub.repository import parse_repository


@pytest.mark.parametrize("text", ["user/name", "u1/n-a.m_e@v1", "user/name@refs/pr/1", "user/name@0123abc"])
def test_a_reference_is_written_as_it_was_read(text: str) -> None:
    parsed = parse_repository(text)
    assert str(parsed) == text
    assert parsed.id == text.partition("@")[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "user/",
        "/name",
        "a/b/c",
        "user/name@",
        "user/na me",
        "user/na@v 1",
        "us..er/name",
        "user/name.git",
        "user/na--me",
        "-user/name",
        "user/name-",
        "user/name@a@b",
        "user/" + "n" * 96,
        "user/name@v\n",
    ],
)
def test_what_the_hub_cannot_name_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="user/name@revision"):
        parse_repository(text)
