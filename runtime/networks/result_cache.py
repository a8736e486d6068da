"""LRU cache of encoder and depth results, keyed by input image, for requests that share one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from sd2rt.engines.interface import Float32Array

_CAPACITY = 8


class ResultCache:
    """Cache of results by name and by identity of their source objects. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[tuple[object, ...], Float32Array]] = OrderedDict()

    def get(
        self, name: Hashable, sources: tuple[object, ...], compute: Callable[[], Float32Array]
    ) -> Float32Array:
        """Return the cached result, read-only, or compute and cache it."""
        key = (name, *map(id, sources))
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry[1]
        result = compute()
        result.flags.writeable = False
        with self._lock:
            # The entry holds its sources: while they live, no other object can have the same id.
            self._entries[key] = sources, result
            if len(self._entries) > _CAPACITY:
                self._entries.popitem(last=False)
        return result
