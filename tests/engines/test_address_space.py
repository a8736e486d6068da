from __future__ import annotations

import resource

import pytest

from sd2rt.engines.address_space import require_address_space
from sd2rt.engines.errors import EngineError


@pytest.mark.parametrize(("limit", "threads", "enough"), [(999, 0, False), (1001, 0, True), (1001, 3, False)])
def test_limit(monkeypatch: pytest.MonkeyPatch, limit: int, threads: int, enough: bool) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit * 10**6, resource.RLIM_INFINITY))
    monkeypatch.setattr("sd2rt.engines.address_space._cores", lambda: 2)
    if enough:
        require_address_space("it", 1000, 10, threads)
    else:
        with pytest.raises(
            EngineError, match=rf"limited to {limit} MB, and it needs at least 10[01]0 MB: raise"
        ):
            require_address_space("it", 1000, 10, threads)


def test_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    require_address_space("it", 10**9, 0)
