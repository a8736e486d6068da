"""What a contest comes to: the result's JSON, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.peers.catalogue import COMMON, OURS, REFERENCE
from benchmarks.peers.contest import Found
from benchmarks.recording import report

TIMES = ("seconds_per_step", "seconds_per_image")
_IDLE_SHARE = 0.02
"""Of a core: an idle peer that uses more disturbs the others, and the table says so."""

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


def peers(found: Mapping[str, Found]) -> dict[str, Any]:
    """By name, as the result has them."""
    return {name: _peer(one, found) for name, one in found.items()}


def _peer(found: Found, all_found: Mapping[str, Found]) -> dict[str, Any]:
    head = {"label": found.peer.label, "precision": found.peer.precision}
    if not found.rounds:
        return head | {"available": False, "reason": found.reason or "it had no turn"}
    measured = head | {
        "available": True,
        "version": found.version,
        "prepare_seconds": round(found.prepare_seconds, 2),
        "open_seconds": round(found.open_seconds, 3),
        "warmup_seconds": round(found.warmup_seconds, 3),
        **{time: _spread(found, time) for time in TIMES},
        "peak_rss_bytes": found.peak_rss_bytes,
        "idle": {"seconds": round(found.idle_seconds, 2), "cpu_seconds": round(found.idle_cpu_seconds, 2)},
        "image": found.image,
        "ratio": {
            other: _ratio(found, all_found[other])
            for other in COMMON
            if other in all_found and all_found[other].rounds.keys() & found.rounds.keys()
        },
    }
    # It has times, but not of every round.
    return measured if found.reason is None else measured | {"failed": found.reason}


def _spread(found: Found, time: str) -> dict[str, float]:
    return report.summary((times[time] for times in found.rounds.values()), 5)


def _ratio(found: Found, other: Found) -> dict[str, dict[str, float]]:
    """Its time over the other's in the same round."""
    rounds = sorted(found.rounds.keys() & other.rounds.keys())
    return {
        time: report.summary(found.rounds[number][time] / other.rounds[number][time] for number in rounds)
        for time in TIMES
    }


def rows(measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table's, the fastest step first."""
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
    found = ratio[other][time]
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"


def remarks(measured: Mapping[str, Any], reference: str | None) -> list[str]:
    """A line each for what a table does not show: who is missing, who draws something else, who is not quiet."""
    lines = []
    for name, peer in measured.items():
        if not peer["available"]:
            lines.append(f"{name} is not measured: {peer['reason']}")
            continue
        if "failed" in peer:
            lines.append(f"{name} did not finish: {peer['failed']}")
        image, idle = peer["image"], peer["idle"]
        if image is not None and not image["comparable"]:
            psnr = f"{image['psnr_db']:.1f} dB of {reference}'s, and {image['bound_db']:g} are asked"
            lines.append(f"{name} is not comparable: its image is within {psnr}")
        if idle["cpu_seconds"] > _IDLE_SHARE * idle["seconds"] + 0.05:
            lines.append(
                f"{name} is not idle when it should be: {idle['cpu_seconds']} s of CPU in {idle['seconds']} s"
            )
    return lines


def crowds(crowded: Iterable[Sequence[str]]) -> list[str]:
    """A line for each group that memory was short for: mapped weights are dropped then, and read again."""
    return [
        f"{', '.join(group)}: together they took more than the free memory, which is hard on those that map files"
        for group in crowded
    ]
