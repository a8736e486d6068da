"""Judge if an image shows what its prompt asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from benchmarks.demo import reader
from benchmarks.demo.prompt_spec import Detail, PromptSpec

_OF_THINGS: tuple[Detail, ...] = ("shape", "color", "size", "place")

Verdict = dict[str, list[bool]]
"""By detail, one flag per requested value; ``things``: the number of things is right; ``all``: everything is."""


def judge(reading: reader.Reading, spec: PromptSpec) -> Verdict:
    """Compare an image with its prompt, using the assignment of detected to requested things that fits best."""
    detected: Sequence[reader.DetectedThing | None] = (*reading.things, *[None] * len(spec.things))
    verdicts = [_judge_as(chosen, spec) for chosen in permutations(detected, len(spec.things))]
    best = max(verdicts, key=lambda verdict: sum(map(sum, verdict.values())))
    if spec.background is not None:
        best["background"] = [reading.background == spec.background]
    best["things"] = [len(reading.things) == len(spec.things)]
    return best | {"all": [all(map(all, best.values()))]}


def _judge_as(detected: Sequence[reader.DetectedThing | None], spec: PromptSpec) -> Verdict:
    """The verdict if requested thing i is matched with detected thing i; None means missing."""
    verdict: Verdict = {}
    for thing, match in zip(spec.things, detected, strict=True):
        for detail in _OF_THINGS:
            expected = getattr(thing, detail)
            if expected is not None:
                verdict.setdefault(detail, []).append(getattr(match, detail, None) == expected)
    if spec.relation is not None:
        first, second = detected
        relation = first and second and reader.relation(first.center, second.center)
        verdict["relation"] = [relation == spec.relation]
    return verdict
