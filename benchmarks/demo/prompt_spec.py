"""The details that a prompt asks for, and the prompt itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.demo import world

Detail = Literal["shape", "color", "size", "place", "relation", "background"]


@dataclass(frozen=True, slots=True)
class ThingSpec:
    """A thing in a prompt; a detail that the prompt leaves open is None."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    place: str | None = None

    @property
    def words(self) -> str:
        """Its wording in captions, without the place."""
        words = " ".join(word for word in (self.size, self.color, self.shape or "shape") if word is not None)
        return f"{'an' if words.startswith('orange') else 'a'} {words}"


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """One or two things. With two, ``relation`` (the first relative to the second) replaces their places."""

    things: tuple[ThingSpec, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt, worded like a caption of the world."""
        text = f" {self.relation} ".join(thing.words for thing in self.things)
        if self.relation is None and self.things[0].place is not None:
            text = f"{text} {self.things[0].place}"
        return text if self.background is None else f"{text} on {self.background}"

    def without(self, detail: Detail, index: int = 0) -> PromptSpec:
        """Return a copy with one detail left open: of thing ``index``, or the relation or background."""
        gap: dict[str, Any] = {detail: None}
        if detail in ("relation", "background"):
            return replace(self, **gap)
        things = list(self.things)
        things[index] = replace(things[index], **gap)
        return replace(self, things=tuple(things))


def spec_of(scene: world.Scene) -> PromptSpec:
    """Every detail of a scene; the prompt equals :func:`benchmarks.demo.world.describe`."""
    alone = scene.relation is None
    things = (ThingSpec(t.shape, t.color, t.size, t.place if alone else None) for t in scene.things)
    return PromptSpec(tuple(things), scene.relation, scene.background)
