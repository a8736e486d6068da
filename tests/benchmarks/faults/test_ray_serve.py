"""Requests and pauses of `python -m benchmarks.faults ray-serve`; Ray itself is in tests/runtime/ray."""

from __future__ import annotations

import importlib

from benchmarks.faults.__main__ import KINDS
from benchmarks.faults.ray_serve import _SEEDS, _body, _longest_pause


def test_every_kind_has_a_module() -> None:
    for kind in KINDS:
        module = importlib.import_module(f"benchmarks.faults.{kind.replace('-', '_')}")
        assert module.CASES > 0
        assert callable(module.run)


def test_no_request_equals_another_and_few_pictures_differ() -> None:
    bodies = [_body(number) for number in range(10 * _SEEDS)]
    assert len({str(body) for body in bodies}) == len(bodies)
    assert len({(body["prompt"].strip(), body["seed"]) for body in bodies}) == _SEEDS


def test_the_longest_pause_counts_from_the_kill() -> None:
    assert _longest_pause(10.0, [10.5, 11.0, 14.0]) == 3.0
    assert _longest_pause(5.0, [10.0, 10.5]) == 5.0
