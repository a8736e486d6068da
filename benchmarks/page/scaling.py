"""Render the page on scaling: a router before many schedulers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.page import markdown
from benchmarks.page.latest import Results
from benchmarks.page.markdown import number, spread

TEMPLATE = Path(__file__).resolve().parent.parent / "scaling.md.in"
_TRAFFIC = ("poisson", "bursty")


def page(results: Results, folder: Path) -> str:
    """Render docs/scaling.md; its links are relative to ``folder``.

    Raises:
        NotMeasuredError: there is no complete result.
    """
    result = results.newest("routing", lambda value: bool(value["complete"]))
    value = result.value
    burst, quiet, burst_seconds, quiet_seconds = value["bursts"]
    largest = max(case["devices"] for case in value["cases"])
    return Template(TEMPLATE.read_text()).substitute(
        steps="{" + ", ".join(map(str, value["steps"])) + "}",
        per_device=value["per_device"],
        least=value["least_requests"],
        seeds=value["seeds"],
        objective=number(value["objective"]),
        bundles=", ".join(f"{share:.0%}" for share in value["bundles"].values()),
        sizes=" and ".join(f"{side} ({share:.0%})" for side, share in value["sizes"].items()),
        keep=value["keep"],
        load_seconds=number(value["load_seconds"]),
        spill=value["spill"],
        max_images=value["max_images"],
        burst=f"{number(burst)} times its mean for {number(burst_seconds)} s, {quiet:.2g} times for "
        f"{number(quiet_seconds)} s",
        largest=largest,
        alike=_alike(value),
        one=_one(value),
        mixed="\n\n".join(
            f"{devices} devices:\n\n{_mixed(value, devices)}" for devices in _fleets(value) if devices > 1
        ),
        loads=_loads(value, largest),
        spills=_spills(value, largest),
        late=_late(value),
        routers=max(case["routers"] for case in value["cases"]),
        decisions=_decisions(value),
        origin=markdown.origin(result, folder),
    )


def _fleets(value: dict[str, Any]) -> list[int]:
    return sorted({case["devices"] for case in value["cases"]})


def _rates(cases: Iterable[dict[str, Any]]) -> list[float]:
    return sorted({case["rate"] for case in cases})


def _plain(value: dict[str, Any], mixed: bool) -> list[dict[str, Any]]:
    """Cases with up-to-date news and the usual limit."""
    return [
        case
        for case in value["cases"]
        if case["mixed"] == mixed and case["routers"] == 1 and case["spill"] == value["spill"]
    ]


def _alike(value: dict[str, Any]) -> str:
    cases = _plain(value, mixed=False)
    names = list(dict.fromkeys((case["policy"], case["traffic"]) for case in cases))
    found = {(case["policy"], case["traffic"], case["devices"]): case for case in cases}
    rows = [
        [
            f"{policy}, {traffic}",
            *(
                f"{spread(case['met'])}; {number(case['goodput']['median'])}" if case is not None else ""
                for case in (found.get((policy, traffic, devices)) for devices in _fleets(value))
            ),
        ]
        for traffic in _TRAFFIC
        for policy, own in names
        if own == traffic
    ]
    return markdown.table(("", *(f"{devices} devices" for devices in _fleets(value))), rows)


def _one(value: dict[str, Any]) -> str:
    cases = [case for case in _plain(value, mixed=True) if case["devices"] == 1]
    return markdown.table(
        ("rate", "traffic", "met", "latency over own time, p95", "loads for 100 requests"),
        [
            [
                number(case["rate"]),
                case["traffic"],
                *(spread(case[key]) for key in ("met", "slowdown_p95", "loads")),
            ]
            for case in sorted(cases, key=lambda case: (case["rate"], case["traffic"] != "poisson"))
        ],
    )


def _mixed(value: dict[str, Any], devices: int) -> str:
    cases = [case for case in _plain(value, mixed=True) if case["devices"] == devices]
    rates = _rates(cases)
    found = {
        (case["policy"], case["affinity"], case["traffic"], case["rate"]): spread(case["met"])
        for case in cases
    }
    return markdown.table(
        ("policy, affinity", *(f"{rate:g}, {traffic}" for traffic in _TRAFFIC for rate in rates)),
        [
            [
                f"{policy}, {affinity}",
                *(found[policy, affinity, traffic, rate] for traffic in _TRAFFIC for rate in rates),
            ]
            for policy, affinity in dict.fromkeys((case["policy"], case["affinity"]) for case in cases)
        ],
    )


def _loads(value: dict[str, Any], devices: int) -> str:
    cases = [
        case
        for case in _plain(value, mixed=True)
        if (case["devices"], case["traffic"], case["rate"]) == (devices, "poisson", 1.5)
    ]
    keys = ("loads", "batch", "slowdown", "slowdown_p95")
    return markdown.table(
        (
            "policy, affinity",
            "loads for 100 requests",
            "images a call",
            "latency over own time, median",
            "the same, p95",
        ),
        [
            [f"{case['policy']}, {case['affinity']}", *(number(case[key]["median"]) for key in keys)]
            for case in cases
        ],
    )


def _spills(value: dict[str, Any], devices: int) -> str:
    cases = [
        case
        for case in value["cases"]
        if case["mixed"]
        and case["routers"] == 1
        and (case["devices"], case["traffic"], case["affinity"]) == (devices, "poisson", "bundle")
    ]
    spills = sorted({case["spill"] for case in cases})
    swept = {(case["policy"], case["rate"]) for case in cases if case["spill"] != value["spill"]}
    return _by(cases, sorted(swept), ("policy", "rate"), "spill", spills, "a limit of {}")


def _late(value: dict[str, Any]) -> str:
    cases = [case for case in value["cases"] if case["routers"] > 1]
    periods = sorted({case["period"] for case in cases})
    names = list(dict.fromkeys((case["policy"], case["affinity"]) for case in cases))
    return _by(cases, names, ("policy", "affinity"), "period", periods, "{:g} s")


def _by(
    cases: Iterable[dict[str, Any]],
    names: Iterable[tuple[Any, Any]],
    keys: tuple[str, str],
    column: str,
    columns: Sequence[Any],
    label: str,
) -> str:
    """Shares of met objectives, a row for each pair of values, and a column for each value of another key."""
    found = {(*(case[key] for key in keys), case[column]): spread(case["met"]) for case in cases}
    return markdown.table(
        (", ".join(keys), *(label.format(each) for each in columns)),
        [
            [
                ", ".join(f"{each:g}" if isinstance(each, float) else each for each in name),
                *(found[(*name, each)] for each in columns),
            ]
            for name in names
        ],
    )


def _decisions(value: dict[str, Any]) -> str:
    names = list(value["decisions"][0]["us"])
    return markdown.table(
        ("devices", *names),
        [
            [case["devices"], *(number(case["us"][name]["median"]) for name in names)]
            for case in value["decisions"]
        ],
    )
