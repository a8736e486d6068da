"""What networks have lately made of pictures, so that requests that share one do not make it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from sd2rt.engines.interface import Float32Array

_KEPT = 8


class ResultCache:
    """Results by what they are and the very objects that they were made of; the least recently used is dropped."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[tuple[object, ...], Float32Array]] = OrderedDict()

    def get(
        self, what: Hashable, sources: tuple[object, ...], make: Callable[[], Float32Array]
    ) -> Float32Array:
        """The result that is known, or the one that ``make`` makes; it is read-only."""
        key = (what, *map(id, sources))
        found = self._known.get(key)
        if found is None:
            result = make()
            result.flags.writeable = False
            # The sources are kept too: as long as they live, nothing else has their identity.
            found = self._known[key] = (sources, result)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return found[1]
