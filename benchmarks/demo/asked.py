"""What a prompt asks for, detail by detail, and whether a picture shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Literal

from benchmarks.demo import reader, world

Detail = Literal["shape", "color", "size", "place", "relation", "background"]
_OF_THINGS: tuple[Detail, ...] = ("shape", "color", "size", "place")


@dataclass(frozen=True, slots=True)
class AskedThing:
    """A thing as a prompt has it: None is what it leaves open."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    place: str | None = None

    @property
    def words(self) -> str:
        """As the world's captions have it, without its place."""
        words = " ".join(word for word in (self.size, self.color, self.shape or "shape") if word is not None)
        return f"{'an' if words.startswith('orange') else 'a'} {words}"


@dataclass(frozen=True, slots=True)
class Asked:
    """One or two things; of two, how the first lies to the second stands for their places."""

    things: tuple[AskedThing, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def prompt(self) -> str:
        """A caption of the world's form."""
        text = f" {self.relation} ".join(thing.words for thing in self.things)
        if self.relation is None and self.things[0].place is not None:
            text = f"{text} {self.things[0].place}"
        return text if self.background is None else f"{text} on {self.background}"

    def without(self, detail: Detail, index: int = 0) -> Asked:
        """The same with a detail left open: of thing ``index``, or the background."""
        gap: dict[str, Any] = {detail: None}
        if detail in ("relation", "background"):
            return replace(self, **gap)
        things = list(self.things)
        things[index] = replace(things[index], **gap)
        return replace(self, things=tuple(things))


def ask(scene: world.Scene) -> Asked:
    """All that a scene's caption can tell: its prompt is :func:`benchmarks.demo.world.describe`'s."""
    alone = scene.relation is None
    things = (AskedThing(t.shape, t.color, t.size, t.place if alone else None) for t in scene.things)
    return Asked(tuple(things), scene.relation, scene.background)


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
