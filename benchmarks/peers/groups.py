"""Which peers are open at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.peers.catalogue import COMMON, Peer

_OVERHEAD_BYTES = 500_000_000
"""A process with its libraries, whatever the weights."""
_SHARE = 0.85
"""Of what is free: estimates are estimates."""


def form(peers: Sequence[Peer], weights_bytes: int, free_bytes: int, together: int | None) -> list[list[str]]:
    """Split the peers into groups that fit into memory, with the common ones in each.

    Each takes the first group with room. One that fits nowhere is alone with the common ones: the estimate may
    be wrong, and it is the system that says no. With ``together``, a group has at most so many processes.
    """
    common = [peer for peer in peers if peer.name in COMMON]
    room = free_bytes * _SHARE - sum(_bytes(peer, weights_bytes) for peer in common)
    most = None if together is None else max(together - len(common), 1)
    groups: list[list[Peer]] = []
    for peer in peers:
        if peer in common:
            continue
        for group in groups:
            taken = sum(_bytes(other, weights_bytes) for other in (*group, peer))
            if taken <= room and (most is None or len(group) < most):
                group.append(peer)
                break
        else:
            groups.append([peer])
    return [[peer.name for peer in (*common, *group)] for group in groups or [[]]]


def asked(groups: Iterable[str], peers: Sequence[Peer]) -> list[list[str]]:
    """What ``--groups a,b c,d`` says. A group that names none of the common ones has both.

    Raises:
        ValueError: a name is not among the peers, or one that is not common is in no group or in two.
    """
    names = [peer.name for peer in peers]
    common = [name for name in names if name in COMMON]
    found = [group.split(",") for group in groups]
    named = [name for group in found for name in group if name not in COMMON]
    wanted = [name for name in names if name not in COMMON]
    strange = [name for group in found for name in group if name not in names]
    if strange or sorted(named) != sorted(wanted):
        raise ValueError(f"--groups has to name each of these once: {', '.join(sorted(wanted))}")
    return [group if set(group) & set(COMMON) else [*common, *group] for group in found]


def free_bytes() -> int:
    """Memory that new processes may take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _bytes(peer: Peer, weights_bytes: int) -> float:
    return peer.memory * weights_bytes + _OVERHEAD_BYTES
