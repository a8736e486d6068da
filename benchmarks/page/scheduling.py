"""Render the page on scheduling."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from benchmarks.page import markdown
from benchmarks.page.latest import Result, Results
from benchmarks.page.markdown import spread, yes
from benchmarks.recording import report

TEMPLATE = Path(__file__).resolve().parent.parent / "scheduling.md.in"
_SCHEDULED = "continuous"
_MOST_OVER_FIRST_COME = 1.05


def page(results: Results, folder: Path) -> str:
    """Render docs/scheduling.md; its links are relative to ``folder``.

    Raises:
        NotMeasuredError: there is no complete result.
    """
    result = results.newest("scheduling", lambda value: bool(value["complete"]))
    value = result.value
    demo = results.newest("scheduling-demo", lambda value: bool(value["complete"]))
    refusals = [
        f"{case['refused']['median']:.1%} at {case['rate']:g}"
        for case in value["policies"][f"{_SCHEDULED}, deadlines"]
        if case["refused"]["median"] >= 0.001
    ]
    return Template(TEMPLATE.read_text()).substitute(
        steps="{" + ", ".join(map(str, value["steps"])) + "}",
        requests=value["requests"],
        seeds=value["seeds"],
        objective=f"{value['objective']:g}",
        curve=f"c({', '.join(value['curve'])}) = {', '.join(f'{each:g}' for each in value['curve'].values())} s",
        refused=", ".join(refusals) or "none",
        goals=_goals(value),
        met=_met(value),
        plot=_plot(result, folder),
        linear_batch=f"{max(case['largest batch']['max'] for case in value['linear']):g}",
        linear=_by_rate(value["linear"], ("one caller", "a caller each")),
        demo=_demo(demo.value),
        demo_seeds=demo.value["seeds"],
        demo_requests=demo.value["requests"],
        demo_origin=markdown.origin(demo, folder),
        priorities=_priorities(value),
        fairness=markdown.table(
            ("", "median", "longest"),
            [[name, spread(each["median"]), spread(each["max"])] for name, each in value["fairness"].items()],
        ),
        estimates=_by_rate(value["estimates"], ("p10", "p50", "p90")),
        overhead=markdown.table(
            ("batch", "waiting", "nobody joins", "works join", "estimate"),
            [
                [
                    case["batch"],
                    case["waiting"],
                    *(f"{case[key]['median']:.0f}" for key in ("staying_us", "joining_us")),
                    f"{case['estimate_us']:.0f}",
                ]
                for case in value["overhead"]
            ],
        ),
        origin=markdown.origin(result, folder),
    )


def _goals(value: dict[str, Any]) -> str:
    rows: list[list[object]] = []
    for goal in value["goals"]:
        for label, cases in (("", value["policies"]), (", padded", value["padded"])):
            met = next(case["met"] for case in cases[_SCHEDULED] if case["rate"] == goal["rate"])
            what = f"objective met at {goal['rate']:g} times serial capacity{label}"
            rows.append([what, f">= {goal['met']:g}", spread(met), yes(met["min"] >= goal["met"])])
    worst = max(case[name]["max"] for case in value["linear"] for name in ("one caller", "a caller each"))
    rows.append(
        [
            "linear curve: mean latency over first come, first served, at most",
            f"<= {_MOST_OVER_FIRST_COME:g}",
            markdown.number(worst),
            yes(worst <= _MOST_OVER_FIRST_COME),
        ]
    )
    return markdown.table(("goal", "bound", "measured", "reached with every seed"), rows)


def _met(value: dict[str, Any]) -> str:
    padded = {f"{name}, padded": cases for name, cases in value["padded"].items()}
    return markdown.table(
        ("rate", *(f"{rate:g}" for rate in value["rates"])),
        [
            [name, *(spread(case["met"]) for case in cases)]
            for name, cases in (value["policies"] | padded).items()
        ],
    )


def _plot(result: Result, folder: Path) -> str:
    if "plot" not in result.value:
        return ""
    picture = markdown.link(result, folder, result.value["plot"])
    return f"![objectives met, and latency over own time, by rate and policy]({picture})"


def _demo(value: dict[str, Any]) -> str:
    rows = []
    for case in value["cases"]:
        first_come = case["policies"]["first come, first served"]
        for name, served in case["policies"].items():
            ratios = [
                each["latency"] / other["latency"] for each, other in zip(served, first_come, strict=True)
            ]
            cells = (
                report.summary(ratios),
                *(report.summary(each[key] for each in served) for key in ("met", "slowdown")),
            )
            rows.append([f"{case['rate']:g}", name, *map(spread, cells)])
    return markdown.table(("rate", "policy", "mean latency", "met", "latency over own time"), rows)


def _by_rate(cases: list[dict[str, Any]], names: tuple[str, ...]) -> str:
    rows = [[f"{case['rate']:g}", *(spread(case[name]) for name in names)] for case in cases]
    return markdown.table(("rate", *names), rows)


def _priorities(value: dict[str, Any]) -> str:
    names = ("interactive", "normal", "batch", "mean")
    rows = [
        [f"{case['curve']}, rate {case['rate']:g}, {label}", *(spread(case[key][name]) for name in names)]
        for case in value["priorities"]
        for key, label in (
            ("preempt", "urgent works take places"),
            ("running images stay", "running images stay"),
        )
    ]
    return markdown.table(("", *names), rows)
