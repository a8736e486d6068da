"""Keys."""

from __future__ import annotations

import base64

import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.auth import Keyring


@pytest.mark.parametrize("header", [None, "", " ", "Bearer", "Bearer x", "Basic abc"])
def test_anything_passes_without_keys(header: str | None) -> None:
    """Some front ends send an empty header where no key is set."""
    assert Keyring([]).caller(header) is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer alpha2",
        "Bearer alph",
        "alpha",
        "Basic alpha",
        "Bearer alpha beta",
    ],
)
def test_wrong_keys(header: str | None) -> None:
    with pytest.raises(ServerError) as error:
        Keyring(["alpha", "beta"]).caller(header)
    assert error.value.code == "invalid_api_key"
    assert "alpha" not in error.value.message


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_a_key_is_a_password_where_that_is_allowed() -> None:
    """AUTOMATIC1111's clients know names and passwords only."""
    keyring = Keyring(["alpha", "be:ta"])
    assert keyring.caller(basic("someone:alpha"), basic=True) == keyring.caller("Bearer alpha")
    assert keyring.caller(basic(":be:ta"), basic=True) == keyring.caller("Bearer be:ta", basic=True)
    with pytest.raises(ServerError):
        keyring.caller(basic("someone:alpha"))
    for wrong in (
        "Basic",
        "Basic !",
        "Basic /w==",
        basic("alpha"),
        basic("alpha:"),
        basic("a:ta"),
        "Bearer a:alpha",
    ):
        with pytest.raises(ServerError) as error:
            keyring.caller(wrong, basic=True)
        assert error.value.code == "invalid_api_key"


def test_each_key_is_a_caller() -> None:
    keyring = Keyring(["alpha", "beta"])
    callers = {
        keyring.caller(f"{scheme} {key}") for scheme in ("Bearer", "bearer") for key in ("alpha", "beta")
    }
    assert len(callers) == 2
    assert not any("alpha" in (caller or "") for caller in callers)
