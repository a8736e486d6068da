"""Whether a picture shows what a prompt asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from benchmarks.demo import reader
from benchmarks.demo.asked import Asked, Detail

_OF_THINGS: tuple[Detail, ...] = ("shape", "color", "size", "place")

Verdict = dict[str, list[bool]]
"""By detail, whether each that was asked for is shown; ``things``: as many as asked; ``all``: nothing is wrong."""


def judge(reading: reader.Reading, asked: Asked) -> Verdict:
    """Whether a picture shows what was asked for. Each asked thing is taken for the one seen that suits best."""
    seen: Sequence[reader.Seen | None] = (*reading.things, *[None] * len(asked.things))
    verdicts = [_judge_as(chosen, asked) for chosen in permutations(seen, len(asked.things))]
    best = max(verdicts, key=lambda verdict: sum(map(sum, verdict.values())))
    if asked.background is not None:
        best["background"] = [reading.background == asked.background]
    best["things"] = [len(reading.things) == len(asked.things)]
    return best | {"all": [all(map(all, best.values()))]}


def _judge_as(seen: Sequence[reader.Seen | None], asked: Asked) -> Verdict:
    """The verdict where asked thing i is taken for seen thing i, None where there is none."""
    verdict: Verdict = {}
    for thing, found in zip(asked.things, seen, strict=True):
        for detail in _OF_THINGS:
            wanted = getattr(thing, detail)
            if wanted is not None:
                verdict.setdefault(detail, []).append(getattr(found, detail, None) == wanted)
    if asked.relation is not None:
        first, second = seen
        shown = first and second and reader.relation(first.center, second.center)
        verdict["relation"] = [shown == asked.relation]
    return verdict
