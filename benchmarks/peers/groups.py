"""Group the peers that are open at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.peers.catalogue import COMMON, Peer

_OVERHEAD_BYTES = 500_000_000
"""Memory of a process with its libraries, without weights."""
_SHARE = 0.85
"""Usable share of the free memory; the estimates are rough."""


def form(peers: Sequence[Peer], weights_bytes: int, free_bytes: int, together: int | None) -> list[list[str]]:
    """Split the peers into groups that fit into memory; every group includes the common peers.

    Each peer joins the first group with room. A peer that fits nowhere forms a group with the common peers and is
    tried anyway, since the estimate may be wrong. ``together`` limits the number of processes per group.
    """
    common = [peer for peer in peers if peer.name in COMMON]
    room = free_bytes * _SHARE - sum(_bytes(peer, weights_bytes) for peer in common)
    max_group = None if together is None else max(together - len(common), 1)
    groups: list[list[Peer]] = []
    for peer in peers:
        if peer in common:
            continue
        for group in groups:
            taken = sum(_bytes(other, weights_bytes) for other in (*group, peer))
            if taken <= room and (max_group is None or len(group) < max_group):
                group.append(peer)
                break
        else:
            groups.append([peer])
    return [[peer.name for peer in (*common, *group)] for group in groups or [[]]]


def parse(groups: Iterable[str], peers: Sequence[Peer]) -> list[list[str]]:
    """Parse ``--groups a,b c,d``. A group that names no common peer gets both.

    Raises:
        ValueError: a name is unknown, or a peer other than the common ones is not in exactly one group.
    """
    names = [peer.name for peer in peers]
    common = [name for name in names if name in COMMON]
    parsed = [group.split(",") for group in groups]
    grouped = [name for group in parsed for name in group if name not in COMMON]
    expected = [name for name in names if name not in COMMON]
    unknown = [name for group in parsed for name in group if name not in names]
    if unknown or sorted(grouped) != sorted(expected):
        raise ValueError(f"--groups must name each of these exactly once: {', '.join(sorted(expected))}")
    return [group if set(group) & set(COMMON) else [*common, *group] for group in parsed]


def free_bytes() -> int:
    """Memory available to new processes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _bytes(peer: Peer, weights_bytes: int) -> float:
    return peer.memory * weights_bytes + _OVERHEAD_BYTES
