"""Render the page on compatibility: what is equal to AUTOMATIC1111, and by how much it is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.page import markdown
from benchmarks.page.latest import Result, Results
from sd2rt.engines.bundle.sampler_config import A1111_SCHEDULES
from sd2rt.runtime.metadata.sampler_names import NOT_REPRODUCED, SCHEDULE_NAMES, find_sampler
from sd2rt.runtime.samplers.a1111.facts import FACTS

TEMPLATE = Path(__file__).resolve().parent.parent / "compatibility.md.in"
EXACT = 1e-5
"""Largest relative difference of latents that counts as exact."""
CLOSE = 1e-2
"""Largest difference that rounding explains, by a network that amplifies it or by a Brownian path."""
OUTCOMES = ("exact", "close", "refused", "silent")
"""Silent is another picture without a word."""

Cases = dict[str, list[float | str]]


def page(results: Results, folder: Path) -> str:
    """Render docs/compatibility.md; its links are relative to ``folder``."""
    values = by_bundle(results)
    counts = Counter(outcome(each) for value in values for each in _each(value))
    total = sum(counts.values())
    return Template(TEMPLATE.read_text()).substitute(
        steps=", ".join(map(str, values[0]["steps"])),
        strength=f"{values[0]['strength']:g}",
        bundles=" and ".join(f"`{value['bundle']}`" for value in values),
        exact=f"{EXACT:.0e}",
        close=f"{CLOSE:.0e}",
        counts=markdown.table(
            ("", "cases", *OUTCOMES),
            [
                *(
                    _counts(value["bundle"], Counter(outcome(each) for each in _each(value)))
                    for value in values
                ),
                _counts("all", counts),
            ],
        ),
        total=total,
        samplers=markdown.table(
            ("AUTOMATIC1111", "`--sampler`", "Automatic is", "largest difference", "outcome"),
            _samplers(values),
        ),
        schedules=markdown.table(
            ("AUTOMATIC1111", "`--schedule`", "largest difference, without SDE", "SDE samplers"),
            _schedules(values),
        ),
        refused=_refused(values),
        missing=markdown.table(
            ("AUTOMATIC1111", "reason"), [[_title(name), reason] for name, reason in NOT_REPRODUCED.items()]
        ),
        origins="\n".join(f"- {markdown.origin(result, folder)}" for result in _found(results)),
    )


def outcome(value: float | str) -> str:
    """Return the outcome of a case: its difference, or its refusal."""
    if isinstance(value, str):
        return "refused"
    return "exact" if value <= EXACT else "close" if value <= CLOSE else "silent"


def by_bundle(results: Results) -> list[dict[str, Any]]:
    """Join the results of each bundle; a sampler's latest one counts."""
    joined: dict[str, dict[str, Any]] = {}
    for value in (result.value for result in _found(results)):
        whole = joined.setdefault(value["bundle"], {**value, "samplers": {}})
        if (value["steps"], value["strength"]) != (whole["steps"], whole["strength"]):
            raise ValueError(f"results of {value['bundle']} are for other steps or strengths: measure again")
        whole["samplers"] |= value["samplers"]
    return list(joined.values())


def _found(results: Results) -> list[Result]:
    """Results by date, the newest one of each set of samplers."""
    newest = results.each("compatibility", lambda value: (value["bundle"], *value["samplers"]))
    found = sorted(newest, key=lambda result: result.date)
    for result in found:
        if not result.value["complete"]:
            raise ValueError(f"{result.path} is incomplete: measure again")
    return found


def _each(value: dict[str, Any]) -> list[float | str]:
    return [
        each
        for schedules in value["samplers"].values()
        for cases in schedules.values()
        for each in _flat(cases)
    ]


def _flat(cases: Cases) -> list[float | str]:
    return [each for values in cases.values() for each in values]


def _largest(values: list[float | str]) -> float:
    return max((each for each in values if not isinstance(each, str)), default=0.0)


def _counts(name: str, counts: Counter[str]) -> list[object]:
    return [name, sum(counts.values()), *(counts[each] for each in OUTCOMES)]


def _samplers(values: list[dict[str, Any]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for label in values[0]["samplers"]:
        found = find_sampler(label, "automatic")
        assert found is not None
        each = [
            one for value in values for cases in value["samplers"][label].values() for one in _flat(cases)
        ]
        option = "".join(f" `--sampler-option {name}={value}`" for name, value in found.options.items())
        listed = len(A1111_SCHEDULES[found.sampler]) == 1
        automatic = "its own timesteps" if listed else _label(FACTS[found.sampler].automatic)
        counts = Counter(map(outcome, each))
        shown = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        rows.append([label, f"`{found.sampler}`{option}", automatic, f"{_largest(each):.0e}", shown])
    return rows


def _label(own: str) -> str:
    return next(label for label, name in SCHEDULE_NAMES.values() if name == own)


def _schedules(values: list[dict[str, Any]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for label, own in [("Automatic", "automatic"), *SCHEDULE_NAMES.values()]:
        by_kind: dict[bool, list[float | str]] = {False: [], True: []}
        for value in values:
            for sampler, schedules in value["samplers"].items():
                by_kind["SDE" in sampler] += _flat(schedules.get(label, {}))
        rows.append([label, f"`{own}`", *(f"{_largest(by_kind[kind]):.0e}" for kind in (False, True))])
    return rows


def _refused(values: list[dict[str, Any]]) -> str:
    cases = sorted({each for value in values for each in _refusals(value)})
    if not cases:
        return (
            "None of these cases is refused. Others are, in one line: UniPC with fewer steps than its order, DDIM in "
            "one step."
        )
    return "Refused, with this message:\n\n" + markdown.table(("case", "message"), cases)


def _refusals(value: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{sampler}, {steps} steps, from {start}", each)
        for sampler, schedules in value["samplers"].items()
        for cases in schedules.values()
        for start, listed in cases.items()
        for steps, each in zip(value["steps"], listed, strict=True)
        if isinstance(each, str)
    ]


def _title(name: str) -> str:
    return name.replace("dpm", "DPM").replace("ddim cfg", "DDIM CFG")
