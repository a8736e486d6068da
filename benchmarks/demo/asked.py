"""What a prompt asks for, detail by detail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.demo import world

Detail = Literal["shape", "color", "size", "place", "relation", "background"]


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
