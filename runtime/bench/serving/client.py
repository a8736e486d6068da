"""A client of OpenAI's image API on a kept-alive connection."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.printable import printable, shown

_MAX_ANSWER_BYTES = 256 << 20
TIMEOUT = 600.0
"""Seconds until a request is given up."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure.

    Args:
        url: with scheme and host; a path before ``/v1`` is kept.
        api_key: sent as a bearer token; None for none.

    Raises:
        RequestError: the URL is not one of HTTP.
    """

    url: str
    api_key: str | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise RequestError(
                f"--serve {shown(self.url)} is not a server's URL: give one such as http://127.0.0.1:8000"
            )

    def connect(self) -> Client:
        """Make a client; it connects at its first request."""
        return Client(self)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, 0 if there was none, and the code of its error."""

    status: int
    code: str | None = None
    body: Any = None


class Client:
    """One connection; not for several threads at once."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname is not None
        self._target = target
        self._connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if target.api_key is not None:
            self._headers["Authorization"] = f"Bearer {target.api_key}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def models(self) -> list[dict[str, Any]]:
        """Return the models that the server has.

        Raises:
            EngineError: there is no server, or it refuses to answer.
        """
        answer = self._send("GET", "/v1/models")
        if answer.status == 0:
            raise EngineError(
                f"no server answers at {shown(self._target.url)} ({answer.code}): start it first"
            )
        models = answer.body.get("data") if isinstance(answer.body, dict) else None
        if answer.status != 200 or not isinstance(models, list):
            problem = f"{answer.status} {answer.code or ''}".strip()
            remedy = "give --api-key" if answer.status in (401, 403) else "check the URL"
            raise EngineError(f"{shown(self._target.url)} answered {problem} for /v1/models: {remedy}")
        return [model for model in models if isinstance(model, dict)]

    def generate(self, fields: dict[str, Any]) -> Answer:
        """Ask for an image, and wait for it."""
        return self._send("POST", "/v1/images/generations", json.dumps(fields).encode())

    def _send(self, method: str, path: str, body: bytes | None = None) -> Answer:
        try:
            self._connection.request(method, self._path + path, body, self._headers)
            response = self._connection.getresponse()
            data = response.read(_MAX_ANSWER_BYTES)
            parsed = json.loads(data) if data else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The next request opens a new connection.
            self._connection.close()
            return Answer(0, printable(type(error).__name__))
        return Answer(response.status, _code(parsed), parsed)


def _code(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return shown(code, 40) if isinstance(code, str) else None
