from __future__ import annotations

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import MAX_SESSIONS, Device, Sessions


@pytest.mark.parametrize(
    ("text", "kind", "index", "name"),
    [("cpu", "cpu", 0, "cpu"), ("cuda", "cuda", 0, "cuda:0"), ("cuda:13", "cuda", 13, "cuda:13")],
)
def test_device(text: str, kind: str, index: int, name: str) -> None:
    device = Device(text)
    assert (device.kind, device.index, str(device)) == (kind, index, name)


@pytest.mark.parametrize(
    "text", ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:1.5", "cuda:٣", "cuda:1\n", " cpu"]
)
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(RequestError, match="is not a device: use cpu, cuda or cuda:N"):
        Device(text)


def test_kept_sessions_are_not_evicted() -> None:
    evicted: list[int] = []
    sessions = Sessions[int](evicted.append)

    def get(batch: int) -> int:
        return sessions.get(lambda dims, carry, watch: dims["B"], {"B": batch}, {}, None)

    for batch in range(MAX_SESSIONS + 4):
        get(batch)
        sessions.keep()
    for batch in range(100, 100 + 2 * MAX_SESSIONS):
        get(batch)
    assert evicted == list(range(100, 100 + MAX_SESSIONS))
    assert [get(batch) for batch in range(MAX_SESSIONS + 4)] == list(range(MAX_SESSIONS + 4))
    assert len(evicted) == MAX_SESSIONS
    sessions.clear()
    assert sorted(evicted[MAX_SESSIONS:]) == [*range(MAX_SESSIONS + 4), *range(116, 132)]
    assert get(0) == 0
