"""Read bodies: JSON, forms with files, and images as base64. Nothing is read from a path or fetched."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from sd2rt.engines.json_text import parse_json
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import ImageRole

_ROLES: dict[str, ImageRole] = {
    "image": "image",
    "image[]": "image",
    "mask": "mask",
    "depth_map": "depth_map",
}
_MAX_FILES = 20
_MAX_FIELDS = 200
_MAX_FIELD_BYTES = 256 << 10
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


@dataclass(slots=True)
class Upload:
    """A body: fields as the client named them, and image files."""

    fields: dict[str, Any]
    images: dict[ImageRole, bytes] = field(default_factory=dict)
    from_form: bool = False
    """True if fields are texts, since forms have no types."""
    repeated: set[str] = field(default_factory=set)
    """Fields that a form has more than once."""


async def read_json(request: Request) -> Upload:
    """Read an object in JSON.

    Raises:
        ServerError: ``unsupported_media_type``, ``invalid_json`` or ``invalid_value``.
    """
    kind = media_type(request)
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise _unsupported(kind, "application/json")
    body = await request.body()
    try:
        fields = parse_json(body)
    except ValueError as error:
        # JSON's own messages have places, not contents.
        raise ServerError("invalid_json", f"the body is not JSON: {_reason(error)}") from None
    if not isinstance(fields, dict):
        raise ServerError("invalid_value", "the body is JSON, but not an object: send {...}")
    return Upload(fields)


async def read_form(request: Request) -> Upload:
    """Read a form with files: ``image`` or ``image[]``, ``mask``, ``depth_map``.

    Raises:
        ServerError: ``unsupported_media_type``, ``invalid_value`` or ``invalid_image``.
    """
    kind = media_type(request)
    if kind != "multipart/form-data":
        raise _unsupported(kind, "multipart/form-data")
    upload = Upload({}, from_form=True)
    try:
        async with request.form(
            max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        ) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name in _ROLES:
                        _add(upload, name, await value.read())
                    # Files by other names are ignored, and named as such.
                    else:
                        upload.fields[name] = None
                elif name in _ROLES:
                    raise ServerError(
                        "invalid_image", f"{name} is text, not a file: upload a PNG, JPEG or WebP", param=name
                    )
                else:
                    upload.repeated |= {name} & upload.fields.keys()
                    upload.fields[name] = value
    except HTTPException as error:
        raise ServerError("invalid_value", f"the form cannot be read: {error.detail}") from None
    except (MultiPartException, LookupError, ValueError):
        # The latter two for names of encodings that Python has and that are none of texts.
        raise ServerError(
            "invalid_value", "the form cannot be read: check its boundary and charset"
        ) from None
    return upload


async def read_json_or_form(request: Request) -> Upload:
    """Read either; JSON has images as base64, in ``image``, ``mask`` and ``depth_map``.

    Raises:
        ServerError: as :func:`read_json` and :func:`read_form`.
    """
    if media_type(request) == "multipart/form-data":
        return await read_form(request)
    upload = await read_json(request)
    for name, role in _ROLES.items():
        if upload.fields.get(name) is not None:
            upload.images[role] = decoded(upload.fields[name], name)
        upload.fields.pop(name, None)
    return upload


def decoded(text: object, name: str) -> bytes:
    """Decode an image in base64, with or without ``data:image/...;base64,`` before it.

    Raises:
        ServerError: ``invalid_image``.
    """
    if isinstance(text, str):
        prefix = _DATA_URL.match(text)
        try:
            return check_image(base64.b64decode(text[prefix.end() if prefix else 0 :], validate=True), name)
        except (binascii.Error, ValueError):
            pass
    raise ServerError(
        "invalid_image",
        f"{name} is not an image in base64: send the bytes of a PNG, JPEG or WebP; paths and URLs are not read",
        param=name,
    )


def check_image(data: bytes, name: str) -> bytes:
    """Return a file that begins as PNG, JPEG or WebP do; the worker decodes it.

    Raises:
        ServerError: ``invalid_image``.
    """
    if (
        data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))
        or (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    ):  # fmt: skip
        return data
    raise ServerError("invalid_image", f"{name} is no PNG, JPEG or WebP file: send one of these", param=name)


def _add(upload: Upload, name: str, data: bytes) -> None:
    role = _ROLES[name]
    if role in upload.images:
        raise ServerError(
            "invalid_value", f"{name} is given more than once: send one image a request", param=name
        )
    upload.images[role] = check_image(data, name)


def media_type(request: Request) -> str:
    """Return a body's media type in lower case, without its parameters; empty if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(kind: str, expected: str) -> ServerError:
    shown = kind if re.fullmatch(r"[a-z0-9!#$&^_.+-]{1,50}/[a-z0-9!#$&^_.+-]{1,50}", kind) else "not given"
    return ServerError(
        "unsupported_media_type", f"the content type is {shown}: send {expected}", param="content-type"
    )


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error)


def texts_as_values(fields: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Convert a form's texts to JSON values; those that are none are left for the checks of types.

    Args:
        fields: texts by name.
        kinds: JSON type by name: ``string``, ``integer``, ``number``, ``boolean`` or ``array``.
    """
    values: dict[str, Any] = {}
    for name, text in fields.items():
        kind = kinds.get(name, "string")
        if not isinstance(text, str) or kind == "string":
            values[name] = text
        else:
            values[name] = _value(text.strip(), kind)
    return values


def _value(text: str, kind: str) -> Any:
    if kind == "boolean":
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    if kind in ("integer", "number") and _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    if kind == "array" and not text:
        return []
    try:
        return parse_json(text) if kind == "array" else text
    except ValueError:
        # Left as it is: the check of the field's type names it.
        return text
