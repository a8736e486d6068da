"""Two results of `sd2rt bench` side by side, with what they do not have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.bench.summary import digits

NAME = "bench"
_TOLD = ("bundle", "settings", "machine")
_OF_THE_MOMENT = ("date", "load_average", "commit", "dirty")
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
        isinstance(result.get(name), dict) for name in _TOLD
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
    """The ratio of every figure that both have, new over old, and what was different around them."""
    ours, theirs = figures(new), figures(old)
    common = [name for name in ours if name in theirs]
    return {
        "differences": list(_differences(new, old)),
        "only_new": [name for name in ours if name not in theirs],
        "only_old": [name for name in theirs if name not in ours],
        "figures": {
            name: {
                "old": theirs[name],
                "new": ours[name],
                "ratio": digits(ours[name] / theirs[name]) if theirs[name] else None,
            }
            for name in common
        },
    }


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Every number that was measured, by a name that says of what; of repeated ones the median."""
    found = {
        key: value
        for section in ("opening", "first_image", "peak_rss_bytes", "device_bytes")
        for key, value in _numbers(section, result.get(section))
    }
    for case in result["cases"]:
        if isinstance(case, dict):
            name = f"{case.get('width')}x{case.get('height')} x {case.get('batch')}"
            found.update(_numbers(name, case))
    return found


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        if "median" in value:
            yield from _numbers(name, value["median"])
            return
        for key, inner in value.items():
            if key not in _LABELS:
                yield from _numbers(f"{name}: {key}" if ":" not in name else f"{name}, {key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _differences(new: dict[str, Any], old: dict[str, Any]) -> Iterator[str]:
    for section in _TOLD:
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
