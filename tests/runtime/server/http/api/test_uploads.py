"""Bodies in JSON, and images in them."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from starlette.requests import Request
from starlette.types import Message

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api.uploads import (
    Upload,
    decoded,
    read_form,
    read_json,
    read_json_or_form,
    texts_as_values,
)

PNG = b"\x89PNG\r\n\x1a\n and so on"
B64 = base64.b64encode(PNG).decode()


def request(body: bytes, kind: str | None = "application/json") -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [] if kind is None else [(b"content-type", kind.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def json_of(body: bytes, kind: str | None = "application/json") -> Upload:
    return asyncio.run(read_json(request(body, kind)))


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"]
)
def test_json(kind: str) -> None:
    assert json_of(b'{"a": 1}', kind).fields == {"a": 1}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe\x00", "invalid_json"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a": ' + b"1" * 5000 + b"}", "invalid_json"),
        (b"[]", "invalid_value"),
        (b'"x"', "invalid_value"),
        (b"null", "invalid_value"),
    ],
)
def test_no_json(body: bytes, code: str) -> None:
    with pytest.raises(ServerError) as error:
        json_of(body)
    assert error.value.code == code


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x" * 999]
)
def test_other_types(kind: str | None) -> None:
    with pytest.raises(ServerError) as error:
        json_of(b"{}", kind)
    assert error.value.code == "unsupported_media_type"


@pytest.mark.parametrize(
    "prefix", ["", "data:image/png;base64,", "DATA:IMAGE/WEBP;BASE64,", "data:image/jpg;base64,"]
)
def test_base64(prefix: str) -> None:
    body = json.dumps({"prompt": "a", "image": prefix + B64}).encode()
    upload = asyncio.run(read_json_or_form(request(body)))
    assert upload.fields == {"prompt": "a"}
    assert upload.images == {"image": PNG}


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "-",
        "",
        "file:///etc/passwd",
        "http://localhost/x.png",
        "data:text/html;base64,AAAA",
        B64[:-1],
        B64 + "\n",
        base64.b64encode(b"GIF89a").decode(),
        5,
        [B64],
        {"url": "http://localhost/"},
        None,
        "\ud800",
    ],
)
def test_no_image(text: object) -> None:
    with pytest.raises(ServerError) as error:
        decoded(text, "image")
    assert (error.value.code, error.value.param) == ("invalid_image", "image")


def form(*parts: tuple[str, str | None, bytes]) -> Upload:
    body = b""
    for name, file, content in parts:
        named = "" if file is None else f'; filename="{file}"'
        body += (
            f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
            + content
            + b"\r\n"
        )
    return asyncio.run(read_form(request(body + b"--x--\r\n", "multipart/form-data; boundary=x")))


def test_form() -> None:
    upload = form(("prompt", None, b"a"), ("image[]", "a.png", PNG), ("mask", "m", PNG), ("other", "o", b"?"))
    assert upload.fields == {"prompt": "a", "other": None}
    assert upload.images == {"image": PNG, "mask": PNG}


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([("image", None, b"/etc/passwd")], "invalid_image"),
        ([("image", "a.png", b"/etc/passwd")], "invalid_image"),
        ([("image", "a.png", b"")], "invalid_image"),
        ([("image", "a", PNG), ("image[]", "b", PNG)], "invalid_value"),
        ([("a", None, b"x" * (1 << 20))], "invalid_value"),
        ([(f"a{i}", None, b"") for i in range(500)], "invalid_value"),
        ([("a", "f", b"")] * 50, "invalid_value"),
    ],
)
def test_no_form(parts: list[tuple[str, str | None, bytes]], code: str) -> None:
    with pytest.raises(ServerError) as error:
        form(*parts)
    assert error.value.code == code


@pytest.mark.parametrize(
    "body", [b"", b"--y\r\n", b"--x\r\n\r\nfoo\r\n--x--", b"--x\r\nContent-Disposition: form-data\r\n\r\n"]
)
@pytest.mark.parametrize(
    "kind", ["; boundary=x", "", "; boundary=", "; boundary=x; charset=idna", "; boundary=x; charset=hex"]
)
def test_broken_forms(body: bytes, kind: str) -> None:
    """A form without the image is refused later; until then it may be read or refused, and no more."""
    fields, code = read_or_refused(body, kind)
    assert code in (None, "invalid_value")
    assert not fields


@pytest.mark.parametrize(
    "charset", ["idna", "punycode", "hex", "rot13", "utf-7", "\0", "utf-16", "undefined"]
)
def test_encodings_of_forms(charset: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xffxn--a-\r\n--x--\r\n'
    fields, code = read_or_refused(body, f"; boundary=x; charset={charset}")
    assert (len(fields), code) in [(1, None), (0, "invalid_value")]


def read_or_refused(body: bytes, kind: str) -> tuple[dict[str, object], str | None]:
    try:
        return asyncio.run(read_form(request(body, f"multipart/form-data{kind}"))).fields, None
    except ServerError as error:
        return {}, error.code


def test_texts_of_forms() -> None:
    kinds = {"i": "integer", "n": "number", "b": "boolean", "a": "array", "s": "string"}
    given = {"i": "12", "n": ".5", "b": "TRUE", "a": '[{"name": "x"}]', "s": "12", "unknown": "1"}
    assert texts_as_values(given, kinds) == {
        "i": 12,
        "n": 0.5,
        "b": True,
        "a": [{"name": "x"}],
        "s": "12",
        "unknown": "1",
    }
    assert texts_as_values({"a": " "}, kinds) == {"a": []}
    bad = {"i": "0x1", "n": "nan", "b": "yes", "a": "[", "i2": "1_0", "i3": "", "i4": "null"}
    assert texts_as_values(bad, {**kinds, "i2": "integer", "i3": "integer", "i4": "integer"}) == bad
