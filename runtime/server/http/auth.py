"""API keys: bearer tokens, or passwords for AUTOMATIC1111's clients, compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from sd2rt.runtime.server.errors import ServerError


class Keyring:
    """The keys of an operator; with none, everybody may use the server.

    Args:
        keys: secrets of visible ASCII characters.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        # Digests have one length, so that a comparison shows nothing of a key's length, and no key is kept.
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def caller(self, authorization: str | None, *, basic: bool = False) -> str | None:
        """Return the caller's name, a short digest of its key, from an ``Authorization`` header.

        None if the server has no keys; the header may then hold anything, or be empty.

        Args:
            authorization: the header's value.
            basic: take a key as the password of Basic authentication too, with any name.

        Raises:
            ServerError: ``invalid_api_key``.
        """
        if not self._digests:
            return None
        scheme, _, token = (authorization or "").strip().partition(" ")
        if basic and scheme.lower() == "basic":
            token = _password(token)
        elif scheme.lower() != "bearer":
            token = ""
        if not token.strip():
            raise ServerError("invalid_api_key", "no API key: send the header 'Authorization: Bearer KEY'")
        given = _digest(token.strip())
        # Every key is compared, whichever matches.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise ServerError("invalid_api_key", "the API key is not one of this server's: check its value")
        return given.hex()[:12]


def _password(token: str) -> str:
    """Return the password of Basic authentication; empty if there is none."""
    try:
        return base64.b64decode(token.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
