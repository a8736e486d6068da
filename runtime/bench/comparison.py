"""Two results of `sd2rt bench` side by side, with what they do not have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.bench.summary import digits

NAME = "bench"
_COMPARED_SECTIONS = ("bundle", "settings", "machine")
_OF_THE_MOMENT = ("date", "load_average", "commit", "dirty")
_MEASURED = ("opening", "first_image", "peak_rss_bytes", "device_bytes")
_LABELS = ("width", "height", "batch", "calls", "iterations_per_image", "n")
"""Numbers that say what was measured, not how it went."""


def read_result(path: Path) -> dict[str, Any]:
    """A result from a file: JSON, or what the command printed, whose last line it is.

    Raises:
        RequestError: it cannot be read, or holds no result of `sd2rt bench`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise RequestError(
            f"--compare {path} cannot be read ({reason}): give what -o or --json wrote"
        ) from None
    result = _json(text)
    if result is None:
        result = _json(text.rstrip().rpartition("\n")[2])
    if not isinstance(result, dict) or result.get("benchmark") != NAME:
        raise RequestError(f"--compare {path} is no result of 'sd2rt bench': give what -o or --json wrote")
    shaped = isinstance(result.get("cases"), list) and all(
        isinstance(result.get(name), dict) for name in _COMPARED_SECTIONS
    )
    if not shaped or not figures(result):
        raise RequestError(f"--compare {path} is a result of 'sd2rt bench' that is damaged: measure it again")
    return result


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def compare(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The ratio of every figure that both have, new over old, and what was different around them.

    Two results are not taken in turns: what else the machines did meanwhile, of which ``load_average`` tells, is
    in their ratio. ``apart`` says whether all of the new values lie on one side of all the old ones; None of what
    is measured once.
    """
    ours, theirs = figures(new), figures(old)
    return {
        "differences": list(_differences(new, old)),
        "load_average": {
            which: each["machine"].get("load_average") for which, each in (("old", old), ("new", new))
        },
        "only_new": [name for name in ours if name not in theirs],
        "only_old": [name for name in theirs if name not in ours],
        "figures": {name: _beside(ours[name], theirs[name]) for name in ours if name in theirs},
    }


class Figure(NamedTuple):
    """Something that was measured: its median, and between what it lay; equal where it was measured once."""

    value: float
    low: float
    high: float


def _beside(new: Figure, old: Figure) -> dict[str, Any]:
    once = new.low == new.high and old.low == old.high
    return {
        "old": old.value,
        "new": new.value,
        "ratio": digits(new.value / old.value) if old.value else None,
        "apart": None if once else new.high < old.low or new.low > old.high,
    }


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """Everything that was measured, by a name that says of what."""
    found = dict(figure for name in _MEASURED for figure in _figures(name, result.get(name)))
    for case in result["cases"]:
        if isinstance(case, dict):
            name = f"{case.get('width')}x{case.get('height')} x {case.get('batch')}"
            found.update(_figures(name, case))
    return found


def _figures(name: str, value: Any) -> Iterator[tuple[str, Figure]]:
    if isinstance(value, dict):
        if "median" in value:
            spread = [_number(value.get(key)) for key in ("median", "min", "max")]
            if None not in spread:
                yield name, Figure(*(number for number in spread if number is not None))
            return
        for key, inner in value.items():
            if key not in _LABELS:
                yield from _figures(f"{name}, {key}", inner)
    elif (number := _number(value)) is not None:
        yield name, Figure(number, number, number)


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _differences(new: dict[str, Any], old: dict[str, Any]) -> Iterator[str]:
    for section in _COMPARED_SECTIONS:
        ours, theirs = _flat(section, new[section]), _flat(section, old[section])
        for name in sorted({*ours, *theirs}):
            now, then = ours.get(name), theirs.get(name)
            if now != then:
                yield f"{name} is {_shown(now)}, was {_shown(then)}"


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: each
        for inner, item in value.items()
        if inner not in _OF_THE_MOMENT
        for key, each in _flat(f"{name}.{inner}", item).items()
    }


def _shown(value: Any) -> str:
    return "not told" if value is None else json.dumps(value, ensure_ascii=False)
