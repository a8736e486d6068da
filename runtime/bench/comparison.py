"""Compare two results of `sd2rt bench`: ratios of their figures, and differences of their conditions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sd2rt.engines.errors import RequestError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.text_file import decode_text
from sd2rt.runtime.bench.summary import digits

NAME = "bench"
_MAX_BYTES = 16 << 20
"""Results have some ten kilobytes; saved output adds lines of progress."""
_COMPARED_SECTIONS = ("bundle", "settings", "machine")
_VOLATILE = ("date", "load_average", "commit", "dirty")
_MEASURED = ("opening", "first_image", "peak_rss_bytes", "device_bytes")
_LABELS = ("width", "height", "batch", "calls", "iterations_per_image", "n")
"""Numbers that identify a measurement and are not results."""


def read_result(path: Path) -> dict[str, Any]:
    """Read a result from a JSON file or from the command's saved output, whose last line is the JSON.

    Raises:
        RequestError: the file cannot be read, or is not a result of `sd2rt bench`.
    """
    try:
        text = decode_text(read_regular(path, _MAX_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise RequestError(
            f"--compare {path} cannot be read ({reason}): use a file written by -o or --json"
        ) from None
    result = _json(text)
    if result is None:
        result = _json(text.rstrip().rpartition("\n")[2])
    if not isinstance(result, dict) or result.get("benchmark") != NAME:
        raise RequestError(
            f"--compare {path} is not a result of 'sd2rt bench': use a file written by -o or --json"
        )
    complete = isinstance(result.get("cases"), list) and all(
        isinstance(result.get(name), dict) for name in _COMPARED_SECTIONS
    )
    if not complete or not figures(result):
        raise RequestError(f"--compare {path} is a damaged result of 'sd2rt bench': run the benchmark again")
    return result


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def compare(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Return the ratio new / old of each figure in both results, and the differences in their conditions.

    The two results were not measured alternately, so other load on the machines affects the ratio; see
    ``load_average``. ``apart`` is True if the ranges of new and old values do not overlap, and None for figures
    measured once.
    """
    new_figures, old_figures = figures(new), figures(old)
    return {
        "differences": list(_differences(new, old)),
        "load_average": {
            which: each["machine"].get("load_average") for which, each in (("old", old), ("new", new))
        },
        "only_new": [name for name in new_figures if name not in old_figures],
        "only_old": [name for name in old_figures if name not in new_figures],
        "figures": {
            name: _compare_figures(new_figures[name], old_figures[name])
            for name in new_figures
            if name in old_figures
        },
    }


class Figure(NamedTuple):
    """Median and range of a measured quantity; all three are equal if it was measured once."""

    value: float
    low: float
    high: float


def _compare_figures(new: Figure, old: Figure) -> dict[str, Any]:
    once = new.low == new.high and old.low == old.high
    return {
        "old": old.value,
        "new": new.value,
        "ratio": digits(new.value / old.value) if old.value else None,
        "apart": None if once else new.high < old.low or new.low > old.high,
    }


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """Return all measured quantities of a result, by name."""
    by_name = dict(figure for name in _MEASURED for figure in _figures(name, result.get(name)))
    for case in result["cases"]:
        if isinstance(case, dict):
            name = f"{case.get('width')}x{case.get('height')} x {case.get('batch')}"
            by_name.update(_figures(name, case))
    return by_name


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
    is_finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_finite else None


def _differences(new: dict[str, Any], old: dict[str, Any]) -> Iterator[str]:
    for section in _COMPARED_SECTIONS:
        new_values, old_values = _flat(section, new[section]), _flat(section, old[section])
        for name in sorted({*new_values, *old_values}):
            after, before = new_values.get(name), old_values.get(name)
            if after != before:
                yield f"{name} is {_format(after)}, was {_format(before)}"


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: each
        for inner, item in value.items()
        if inner not in _VOLATILE
        for key, each in _flat(f"{name}.{inner}", item).items()
    }


def _format(value: Any) -> str:
    return "not recorded" if value is None else json.dumps(value, ensure_ascii=False)
