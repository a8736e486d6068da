"""A short wait for runs of the last call that are about to ask for their next step, so that it can be shared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sd2rt.runtime.scheduling.cost_curve import CostCurve

_SLACK = 0.1
"""Share of a call that a wait may exceed what is expected, and that callers in step may differ."""
_WORTH = 0.1
"""A wait pays if the shared call saves at least this share of its cost."""
_MOST = 0.75
"""Share of the saving that may be waited once, to bring callers into step."""


@dataclass(slots=True)
class Pace:
    """Moments of a run that asks for steps one by one, in seconds of one clock."""

    asked: float | None = None
    """It asked for the step that it waits for, or last waited for."""
    advanced: float | None = None
    """Its last step ended."""
    pause: float = 0.0
    """Between the end of a step and the wish for the next, at the last time."""

    def ask(self, now: float) -> None:
        """Note that the run asks for its next step."""
        if self.advanced is not None and (self.asked is None or self.asked <= self.advanced):
            self.pause = now - self.advanced
        self.asked = now

    def returns_in(self, now: float) -> float:
        """Seconds until it is expected to ask again."""
        return max(0.0, (self.advanced or now) + self.pause - now)


def patience(
    now: float, own: Pace, images: int, others: Iterable[tuple[Pace, int]], cost: CostCurve, limit: int
) -> float:
    """Seconds to wait before a call, for runs that would otherwise take turns with it; 0 to make it at once.

    Two runs that ask for steps one by one take turns although they could share calls: while the call of one is under
    way, the other asks, and has it made before the first can ask again. A run waits for another if a shared call
    saves a tenth, and the other is expected within a tenth of a call. It waits longer, once, if it had to wait for
    the other's call and both pause about as long between steps: from then on they ask at the same time.

    Args:
        own: of the run whose thread is about to make the call.
        images: in the call as it would be now.
        others: runs of the last call that have not asked again, with their images.
        limit: the most images in a call.
    """
    alone, waits = cost.seconds(images), []
    if alone is None or images >= limit:
        return 0.0
    slack = _SLACK * alone
    for other, further in others:
        saving = _saving(cost, images, further, limit)
        if saving is None:
            continue
        wait = other.returns_in(now)
        waited = own.asked is not None and other.advanced is not None and own.asked < other.advanced
        in_step = waited and abs(other.pause - own.pause) <= slack
        if wait <= slack or (in_step and wait <= _MOST * saving):
            waits.append(wait)
    return max(waits) + slack if waits else 0.0


def _saving(cost: CostCurve, images: int, further: int, limit: int) -> float | None:
    """Seconds that a shared call saves, if they are worth it. What was never measured is given a try."""
    together = min(limit, images + further)
    separate = (cost.seconds(images) or 0.0) + (cost.seconds(further) or 0.0)
    shared = cost.measured.get(together)
    if shared is None:
        return separate / 2
    saving = separate - shared
    return saving if saving >= _WORTH * shared else None
