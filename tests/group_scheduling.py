"""pytest-xdist gives its workers whole groups of tests, in the order of :mod:`order`.

Its own ``--dist loadgroup`` does not do it: it writes groups into the names of tests, which pytest 9.2 keeps as they
are, and then gives out single tests without a word (https://github.com/pytest-dev/pytest-xdist/issues/1386).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_FILE = "groups.json"


def tell(groups: dict[str, str], config: pytest.Config) -> None:
    """In a worker: say the groups to the session that started it; all workers say the same."""
    own = Path(config.option.basetemp)
    own.mkdir(parents=True, exist_ok=True)
    written = own.parent / f"{own.name}-{_FILE}"
    written.write_text(json.dumps(groups), encoding="utf-8")
    written.replace(own.parent / _FILE)


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """One group after another to whichever worker has almost nothing left to do."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)
        # Where workers have their folders; pytest-xdist takes it from there too.
        self._folder: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        self._groups: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        # Asked for when every worker has collected its tests, not before.
        if self._groups is None:
            self._groups = json.loads((self._folder / _FILE).read_text(encoding="utf-8"))
        return self._groups.get(nodeid, nodeid)
