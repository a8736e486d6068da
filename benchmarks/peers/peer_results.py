"""Convert measured peers to the result's JSON, its table and its remarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.peers.catalogue import COMMON, OURS, REFERENCE
from benchmarks.peers.contest import PeerState
from benchmarks.recording import report

TIMES = ("seconds_per_step", "seconds_per_image")
_IDLE_SHARE = 0.02
"""Share of a core: an idle peer that uses more disturbs the others and gets a remark."""

COLUMNS = (
    "",
    "precision",
    "off by",
    "PSNR, dB",
    "s/step",
    "s/image",
    f"step / {OURS}",
    f"step / {REFERENCE}",
    f"image / {REFERENCE}",
    "open, s",
    "warm-up, s",
    "peak, GB",
)


def peers(states: Mapping[str, PeerState]) -> dict[str, Any]:
    """JSON record of each peer, by name."""
    return {name: _peer(state, states) for name, state in states.items()}


def _peer(state: PeerState, states: Mapping[str, PeerState]) -> dict[str, Any]:
    head = {"label": state.peer.label, "precision": state.peer.precision}
    if not state.rounds:
        return head | {"available": False, "reason": state.reason or "it did not get a turn"}
    measured = head | {
        "available": True,
        "version": state.version,
        "prepare_seconds": round(state.prepare_seconds, 2),
        "open_seconds": round(state.open_seconds, 3),
        "warmup_seconds": round(state.warmup_seconds, 3),
        **{time: _spread(state, time) for time in TIMES},
        "peak_rss_bytes": state.peak_rss_bytes,
        "idle": {"seconds": round(state.idle_seconds, 2), "cpu_seconds": round(state.idle_cpu_seconds, 2)},
        "image": state.image,
        "ratio": {
            other: _ratio(state, states[other])
            for other in COMMON
            if other in states and states[other].rounds.keys() & state.rounds.keys()
        },
    }
    # With a reason, the peer has times of some rounds only.
    return measured if state.reason is None else measured | {"failed": state.reason}


def _spread(state: PeerState, time: str) -> dict[str, float]:
    return report.summary((times[time] for times in state.rounds.values()), 5)


def _ratio(state: PeerState, other: PeerState) -> dict[str, dict[str, float]]:
    """Ratio of the peer's time to the other's, within each round."""
    rounds = sorted(state.rounds.keys() & other.rounds.keys())
    return {
        time: report.summary(state.rounds[number][time] / other.rounds[number][time] for number in rounds)
        for time in TIMES
    }


def rows(measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Table rows, fastest step first."""
    available = {name: peer for name, peer in measured.items() if peer["available"]}
    order = sorted(available, key=lambda name: available[name]["seconds_per_step"]["median"])
    return [_row(name, available[name]) for name in order]


def _row(name: str, peer: Mapping[str, Any]) -> tuple[str, ...]:
    image, ratio = peer["image"], peer["ratio"]
    off, psnr = "", ""
    if image is not None:
        off = str(image["max_pixel"])
        psnr = "equal" if image["psnr_db"] is None else f"{image['psnr_db']:.1f}"
    return (
        name,
        peer["precision"],
        off,
        psnr,
        f"{peer['seconds_per_step']['median']:.4g}",
        f"{peer['seconds_per_image']['median']:.4g}",
        _cell(ratio, OURS, "seconds_per_step"),
        _cell(ratio, REFERENCE, "seconds_per_step"),
        _cell(ratio, REFERENCE, "seconds_per_image"),
        f"{peer['open_seconds']:.1f}",
        f"{peer['warmup_seconds']:.1f}",
        f"{peer['peak_rss_bytes'] / 1e9:.2f}",
    )


def _cell(ratio: Mapping[str, Any], other: str, time: str) -> str:
    if other not in ratio:
        return ""
    spread = ratio[other][time]
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def remarks(measured: Mapping[str, Any], reference: str | None) -> list[str]:
    """One line per fact the table does not show: missing peers, incomparable images, peers that were not idle."""
    lines = []
    for name, peer in measured.items():
        if not peer["available"]:
            lines.append(f"{name} is not measured: {peer['reason']}")
            continue
        if "failed" in peer:
            lines.append(f"{name} did not finish: {peer['failed']}")
        image, idle = peer["image"], peer["idle"]
        if image is not None and not image["comparable"]:
            psnr = f"{image['psnr_db']:.1f} dB against {reference}'s, below {image['bound_db']:g} dB"
            lines.append(f"{name} is not comparable: its image has {psnr}")
        if idle["cpu_seconds"] > _IDLE_SHARE * idle["seconds"] + 0.05:
            lines.append(
                f"{name} was not idle between its turns: {idle['cpu_seconds']} s of CPU time in {idle['seconds']} s"
            )
    return lines


def crowds(crowded: Iterable[Sequence[str]]) -> list[str]:
    """One line per group that exceeded the free memory: mapped weights are then dropped and read again."""
    return [
        f"{', '.join(group)}: together they used more than the free memory, which slows peers that map files"
        for group in crowded
    ]
