"""Deficit round robin (Shreedhar and Varghese, 1995)."""

from __future__ import annotations

from collections.abc import Container, Hashable
from typing import Generic, Self, TypeVar

Member = TypeVar("Member", bound=Hashable)

_SPENT = 1e-9
"""Credit at which a turn has ended, above the rounding errors of sums."""


class DeficitRing(Generic[Member]):
    """Members take turns of one quantum each; a member that used more than its turn pays with later turns.

    Costs are in quanta. Members that cannot use their turn keep it, but never more than one. New members come last,
    so that a member's turn comes after at most one turn of each other, whoever arrives meanwhile.
    """

    def __init__(self) -> None:
        self._credit: dict[Member, float] = {}

    def add(self, member: Member) -> None:
        """Add a member at the end, unless it is there."""
        self._credit.setdefault(member, 1.0)

    def discard(self, member: Member) -> None:
        """Remove a member, with what it owes."""
        self._credit.pop(member, None)

    def copy(self) -> Self:
        """Return an independent copy."""
        other = type(self)()
        other._credit = dict(self._credit)
        return other

    def charge(self, member: Member, quanta: float) -> None:
        """Charge a member for its use, or refund a negative cost up to a full turn; ignores others."""
        if member in self._credit:
            self._credit[member] = min(1.0, self._credit[member] - quanta)

    def pick(self, candidates: Container[Member]) -> Member:
        """Return the candidate whose turn it is, and end the turns of those before it that have no credit left.

        Raises:
            LookupError: no member is a candidate.
        """
        while True:
            for member in self._credit:
                if member in candidates:
                    break
            else:
                raise LookupError("no candidate is in the ring")
            credit = self._credit[member]
            if credit > _SPENT:
                return member
            del self._credit[member]
            self._credit[member] = credit + 1.0
