"""Requests that were in workers which died."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from time import monotonic

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import GenerationRequest

_DEATHS = 2
_KEPT = 256
_SECONDS = 3600.0


class Suspects:
    """Counts dead workers by request. Requests are equal if their content is, whoever sends them."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Deaths and the time of the last one, by content; the last one comes last."""

    def __len__(self) -> int:
        return len(self._deaths)

    def add(self, requests: Iterable[GenerationRequest]) -> None:
        """Note that a worker died in which work on requests had begun. Equal ones are one: this is one death."""
        for content in dict.fromkeys(map(_content, requests)):
            deaths, _ = self._deaths.pop(content, (0, 0.0))
            self._deaths[content] = deaths + 1, monotonic()
        while len(self._deaths) > _KEPT:
            self._deaths.popitem(last=False)

    def clear(self, request: GenerationRequest) -> None:
        """Note that a request was finished: it was not at fault."""
        if self._deaths:
            self._deaths.pop(_content(request), None)

    def refuse(self, request: GenerationRequest) -> None:
        """Refuse a request that was in two dead workers, for an hour.

        Raises:
            ServerError: it was.
        """
        while self._deaths and monotonic() - next(iter(self._deaths.values()))[1] > _SECONDS:
            self._deaths.popitem(last=False)
        if self._deaths and self._deaths.get(_content(request), (0, 0.0))[0] >= _DEATHS:
            raise ServerError("poisoned", f"this request was in {_DEATHS} workers when they died: change it")


def _content(request: GenerationRequest) -> str:
    """Hash all that determines the work: not the id, nor the caller."""
    fields = [request.model, request.fields, request.count, request.loras, request.output_format]
    content = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for role, data in sorted(request.images.items()):
        content.update(f"\n{role} {len(data)}\n".encode())
        content.update(data)
    return content.hexdigest()
