"""Which tests a worker of pytest-xdist runs after which: so that no worker waits for another's bundle."""

from __future__ import annotations

import inspect
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from sd2rt.engines.bundle.model_kinds import KINDS

NUMBER = pytest.StashKey[int]()
"""A test's place among all, in the order of the files."""

BUNDLES = {
    **{"small_bundle" if kind == "base" else f"small_{kind}_bundle": str(kind) for kind in KINDS},
    "demo_bundle": "demo",
    "half": "half",
    # Servers of their own: one after the other, so that none slows another down.
    "demo_folders": "demo-folders",
    # One Ray at a time.
    "ray_session": "ray",
    "ray_cluster": "ray",
}
"""Fixtures that build, and what tests that ask for them by a parameter call them."""


RAY = {fixture for fixture, name in BUNDLES.items() if name == "ray"}
"""Fixtures that start Ray: whatever bundles these tests need, one worker has them all, and starts it alone."""


class _Group(NamedTuple):
    room: str
    bundles: tuple[str, ...]


def number(items: list[pytest.Item]) -> None:
    for place, item in enumerate(items):
        item.stash[NUMBER] = place


def share_out(items: list[pytest.Item]) -> dict[str, str]:
    """Sort the tests for workers that are given one group after another, and say the groups by test.

    Tests of a room that need the same bundles are a group: what the room's fixtures open, one worker opens.
    First come as many groups as there are bundles, each the largest that needs one bundle and no other: workers that
    build at the same time build different ones. The other groups find what they need. Tests without a bundle come
    last and are given out one by one, so that no worker is idle while another has a long group to finish.
    """
    groups: dict[_Group, list[pytest.Item]] = defaultdict(list)
    single = []
    for item in items:
        if needed := _bundles(item):
            groups[_Group(_room(item.path), needed)].append(item)
        else:
            single.append(item)
    largest = {group.bundles: group for group in sorted(groups, key=lambda group: len(groups[group]))}
    first = [largest[bundle,] for bundle in BUNDLES.values() if (bundle,) in largest]
    ordered = dict.fromkeys((*first, *groups))
    items[:] = [*(item for group in ordered for item in groups[group]), *single]
    return {
        item.nodeid: f"{group.room} with {' and '.join(group.bundles)}"
        for group in ordered
        for item in groups[group]
    }


def _room(path: Path) -> str:
    """Name the package and room of a test file, such as ``runtime/prompts``."""
    parts = path.relative_to(Path(__file__).parent).parent.parts
    return "/".join(parts[:2])


def _bundles(item: pytest.Item) -> tuple[str, ...]:
    assert isinstance(item, pytest.Function)
    if RAY & set(item.fixturenames):
        return ("ray",)
    needed = {name for fixture, name in BUNDLES.items() if fixture in item.fixturenames}
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "request" in inspect.signature(item.function).parameters:
        asked = {value for value in callspec.params.values() if isinstance(value, str)}
        needed |= asked & set(BUNDLES.values())
    return tuple(sorted(needed))
