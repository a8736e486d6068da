"""A request that was in two dead workers is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import GenerationRequest
from sd2rt.runtime.server.worker import poison
from sd2rt.runtime.server.worker.poison import Suspects

REQUEST = GenerationRequest(
    request_id="a", model="demo", fields={"prompt": "x", "seed": 1}, images={"image": b"i"}
)


def test_the_second_death_counts_whoever_sends_it() -> None:
    suspects = Suspects()
    suspects.add([REQUEST])
    suspects.refuse(REQUEST)
    suspects.add([replace(REQUEST, request_id="b", key="another")])
    with pytest.raises(ServerError, match="in 2 workers") as refused:
        suspects.refuse(replace(REQUEST, request_id="c", priority="batch"))
    assert refused.value.code == "poisoned"
    assert refused.value.answer.retry is False


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, model="other"),
        replace(REQUEST, fields={"prompt": "x", "seed": 2}),
        replace(REQUEST, images={"image": b"j"}),
        replace(REQUEST, images={"mask": b"i"}),
        replace(REQUEST, loras=(("style", 1.0),)),
    ],
)
def test_other_requests_pass(other: GenerationRequest) -> None:
    suspects = Suspects()
    suspects.add([REQUEST])
    suspects.add([REQUEST])
    suspects.refuse(other)


def test_equal_requests_in_one_worker_are_one_death() -> None:
    suspects = Suspects()
    suspects.add([REQUEST, replace(REQUEST, request_id="b")])
    suspects.refuse(REQUEST)


def test_a_finished_request_is_cleared() -> None:
    suspects = Suspects()
    suspects.add([REQUEST])
    suspects.clear(REQUEST)
    suspects.add([REQUEST])
    suspects.refuse(REQUEST)


def test_deaths_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(poison, "monotonic", lambda: now)
    suspects = Suspects()
    suspects.add([REQUEST])
    suspects.add([REQUEST])
    now = 4000.0
    suspects.refuse(REQUEST)
    for number in range(1000):
        suspects.add([replace(REQUEST, fields={"seed": number})])
    assert len(suspects) == 256
