"""Turns of equal cost: shares, debts, and members that cannot use their turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.runtime.scheduling.deficit_ring import DeficitRing

COSTS = st.lists(st.floats(0.01, 3), min_size=1, max_size=6)


def test_none_is_a_member_like_others() -> None:
    ring: DeficitRing[str | None] = DeficitRing()
    ring.add(None)
    assert ring.pick([None]) is None
    with pytest.raises(LookupError):
        ring.pick(["a"])


@given(COSTS, st.integers(1, 300))
def test_shares_are_equal_whatever_one_use_costs(costs: list[float], uses: int) -> None:
    """At any time, no two members that always use their turns are further apart than a turn and a use each."""
    ring: DeficitRing[int] = DeficitRing()
    used = [0.0] * len(costs)
    for member in range(len(costs)):
        ring.add(member)
    for _ in range(uses):
        member = ring.pick(range(len(costs)))
        ring.charge(member, costs[member])
        used[member] += costs[member]
    assert max(used) - min(used) <= 1 + max(costs) + 1e-6


@given(COSTS, st.integers(1, 50))
def test_newcomers_overtake_nobody_twice(costs: list[float], newcomers: int) -> None:
    """A member's next turn comes after one turn of each other, even if a new one arrives before every pick."""
    ring: DeficitRing[object] = DeficitRing()
    ring.add("old")
    for member in range(len(costs)):
        ring.add(member)
    for member, cost in enumerate(costs):
        ring.charge(member, cost)
    ring.charge("old", 1.0)
    members: set[object] = {"old", *range(len(costs))}
    picked = []
    for index in range(newcomers + len(costs) + 1):
        newcomer = f"new {index}"
        ring.add(newcomer)
        members.add(newcomer)
        picked.append(ring.pick(members))
        ring.charge(picked[-1], 1.0)
    assert "old" in picked[: len(costs) + 2]


def test_a_member_without_use_keeps_one_turn() -> None:
    ring: DeficitRing[str] = DeficitRing()
    ring.add("idle")
    ring.add("busy")
    for _ in range(100):
        assert ring.pick({"busy"}) == "busy"
        ring.charge("busy", 1.0)
    turns = []
    for _ in range(6):
        turns.append(ring.pick({"idle", "busy"}))
        ring.charge(turns[-1], 1.0)
    assert turns.count("idle") in (3, 4)


def test_a_refund_gives_no_more_than_a_turn() -> None:
    ring: DeficitRing[str] = DeficitRing()
    ring.add("a")
    ring.add("b")
    ring.charge("a", -50.0)
    picked = []
    for _ in range(4):
        picked.append(ring.pick({"a", "b"}))
        ring.charge(picked[-1], 1.0)
    assert picked == ["a", "b", "a", "b"]


def test_discarded_members_are_not_picked_and_not_charged() -> None:
    ring: DeficitRing[str] = DeficitRing()
    ring.add("a")
    ring.add("b")
    ring.discard("a")
    ring.charge("a", 5.0)
    assert ring.pick({"a", "b"}) == "b"
    with pytest.raises(LookupError):
        ring.pick({"a"})


def test_a_copy_is_independent() -> None:
    ring: DeficitRing[str] = DeficitRing()
    ring.add("a")
    ring.add("b")
    copy = ring.copy()
    copy.charge("a", 1.0)
    assert copy.pick({"a", "b"}) == "b"
    assert ring.pick({"a", "b"}) == "a"
