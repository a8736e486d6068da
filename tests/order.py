"""Which tests a worker of pytest-xdist runs after which: so that no worker waits for another's bundle."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import NamedTuple

import pytest

NUMBER = pytest.StashKey[int]()
"""A test's place among all, in the order of the files."""

BUNDLES = {
    "small_bundle": "base",
    "small_v_bundle": "v",
    "small_turbo_bundle": "turbo",
    "small_inpainting_bundle": "inpainting",
    "small_depth_bundle": "depth",
    "small_upscaler_bundle": "upscaler",
    "demo_bundle": "demo",
    "half": "half",
}
"""Fixtures that build, and what tests that ask for them by a parameter call them."""


class _Group(NamedTuple):
    folder: str
    bundles: tuple[str, ...]


def number(items: list[pytest.Item]) -> None:
    for place, item in enumerate(items):
        item.stash[NUMBER] = place


def share_out(items: list[pytest.Item]) -> None:
    """Sort the tests for ``--dist loadgroup``, which gives workers one group after another in this order.

    Those of a folder that need the same bundles are a group: what the folder's fixtures open, one worker opens. First
    come as many groups as there are bundles, each the largest that needs one bundle and no other: workers that build
    at the same time build different ones. The other groups find what they need. Tests without a bundle come last
    and one by one, so that no worker is idle while another has a long group to finish.
    """
    groups: dict[_Group, list[pytest.Item]] = defaultdict(list)
    single = []
    for item in items:
        if needed := _bundles(item):
            groups[_Group(item.path.parent.name, needed)].append(item)
        else:
            single.append(item)
    by_size = sorted(groups, key=lambda key: len(groups[key]))
    largest = {key.bundles: key for key in by_size}
    first = [largest[bundle,] for bundle in BUNDLES.values() if (bundle,) in largest]
    ordered = {key: groups[key] for key in (*first, *groups)}
    for key, group in ordered.items():
        for item in group:
            item.add_marker(pytest.mark.xdist_group(f"{key.folder} with {' '.join(key.bundles)}"))
    items[:] = [*(item for group in ordered.values() for item in group), *single]


def _bundles(item: pytest.Item) -> tuple[str, ...]:
    assert isinstance(item, pytest.Function)
    needed = {name for fixture, name in BUNDLES.items() if fixture in item.fixturenames}
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "request" in inspect.signature(item.function).parameters:
        asked = {value for value in callspec.params.values() if isinstance(value, str)}
        needed |= asked & set(BUNDLES.values())
    return tuple(sorted(needed))
