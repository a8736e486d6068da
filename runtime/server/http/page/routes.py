"""Routes of the page's files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
}
PAGE_PATHS = frozenset(_FILES)
"""Paths that need no key: the page asks for it."""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def page_bytes() -> int:
    """Return the size of all files together."""
    return sum((_FOLDER / name).stat().st_size for name, _ in _FILES.values())


def page_routes() -> list[Route]:
    """Read the files, and return a route for each."""
    return [_route(path, *file) for path, file in _FILES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    content = (_FOLDER / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        # Kept, and asked for again each time: the three files of two versions never mix.
        "cache-control": "no-cache",
        "etag": tag,
        "content-security-policy": _POLICY,
        "referrer-policy": "no-referrer",
    }

    async def send(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, send, methods=["GET"], name=name)
