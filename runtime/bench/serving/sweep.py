"""Measure a server at several rates: latency, goodput under an objective, and what it refuses."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.printable import shown
from sd2rt.runtime.bench import machine
from sd2rt.runtime.bench.serving.client import Client, Target
from sd2rt.runtime.bench.serving.load import Outcome, offer, poisson_arrivals
from sd2rt.runtime.bench.summary import digits

STEPS = (4, 20, 20, 30, 50)
OBJECTIVE = 3.0
RATES = (0.5, 1.0, 1.5, 2.0)
_ALONE = 3
"""Measurements of a request alone."""
_PERCENTILES = (50, 90, 99)

Tell = Callable[[str, int, int], None]
"""Called with a stage, and how much of how much is done."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """Load to offer."""

    target: Target
    prompt: str
    model: str | None = None
    """Name on the server; None for its first."""
    rates: tuple[float, ...] = ()
    """Requests a second; empty for multiples of what the server makes one by one."""
    seconds: float = 30.0
    """Of arrivals at each rate."""
    steps: tuple[int, ...] = STEPS
    """Each request has one of them."""
    objective: float = OBJECTIVE
    """A request is good if it takes at most so many times what it takes alone."""
    seed: int = 1


def measure(settings: SweepSettings, tell: Tell = lambda stage, done, total: None) -> dict[str, Any]:
    """Measure requests alone, then at each rate.

    Raises:
        RequestError: the server lacks the model.
        EngineError: there is no server, or it refuses a request that is alone.
    """
    before = machine.facts()
    with settings.target.connect() as client:
        model = _model(client, settings.model)
        fields = {"prompt": settings.prompt, "model": model}
        alone = _alone(client, fields, settings, tell)
    serial = 1 / statistics.mean(alone[steps] for steps in settings.steps)
    rates = settings.rates or tuple(digits(rate * serial) for rate in RATES)
    cases = []
    for rate in rates:
        arrivals = poisson_arrivals(rate, settings.seconds, settings.steps, settings.seed, fields)
        stage = f"{rate:.3g} requests/s"
        began = time.monotonic()
        outcomes = offer(settings.target, arrivals, partial(_told, tell, stage, len(arrivals)))
        took = time.monotonic() - began
        cases.append({"rate": rate, "load": digits(rate / serial), **_case(outcomes, alone, settings, took)})
    return {
        "benchmark": "bench-serve",
        "machine": before,
        "load_average_after": machine.load_average(),
        "settings": {
            "model": model,
            "prompt": settings.prompt,
            "seconds": settings.seconds,
            "steps": list(settings.steps),
            "objective": settings.objective,
            "seed": settings.seed,
        },
        "alone": [{"steps": steps, "seconds": seconds} for steps, seconds in sorted(alone.items())],
        "serial_rate": digits(serial),
        "cases": cases,
    }


def _told(tell: Tell, stage: str, total: int, done: int) -> None:
    tell(stage, done, total)


def _model(client: Client, wanted: str | None) -> str:
    names = [str(model.get("id")) for model in client.models()]
    if not names:
        raise EngineError("the server has no models: start it with a bundle")
    if wanted is not None and wanted not in names:
        raise RequestError(f"the server has no model {shown(wanted)}: use {shown(', '.join(names), 200)}")
    return names[0] if wanted is None else wanted


def _alone(client: Client, fields: dict[str, Any], settings: SweepSettings, tell: Tell) -> dict[int, float]:
    """Seconds of a request alone, by its steps; medians."""
    kinds = sorted(set(settings.steps))
    total = len(kinds) * (_ALONE + 1)
    alone: dict[int, float] = {}
    for index, steps in enumerate(kinds):
        taken = []
        for repetition in range(_ALONE + 1):
            tell("alone", index * (_ALONE + 1) + repetition, total)
            began = time.monotonic()
            answer = client.generate({**fields, "num_inference_steps": steps, "seed": repetition})
            if answer.status != 200:
                problem = f"{answer.status or 'nothing'} {answer.code or ''}".strip()
                raise EngineError(f"the server answered {problem} to a request of {steps} steps: see its log")
            taken.append(time.monotonic() - began)
        # The first warms up.
        alone[steps] = digits(statistics.median(taken[1:]))
    return alone


def _case(
    outcomes: Sequence[Outcome], alone: dict[int, float], settings: SweepSettings, took: float
) -> dict[str, Any]:
    finished = [outcome for outcome in outcomes if outcome.answer.status == 200]
    slowdowns = [each.seconds / alone[each.arrival.fields["num_inference_steps"]] for each in finished]
    good = sum(slowdown <= settings.objective for slowdown in slowdowns)
    statuses = Counter(
        f"{each.answer.status} {each.answer.code or ''}".strip() if each.answer.status else "no answer"
        for each in outcomes
    )
    return {
        "requests": len(outcomes),
        "statuses": dict(sorted(statuses.items())),
        "good": digits(good / len(outcomes)) if outcomes else None,
        "goodput": digits(good / settings.seconds),
        "images_per_second": digits(len(finished) / took),
        "latency_seconds": _percentiles([each.seconds for each in finished]),
        "slowdown": _percentiles(slowdowns),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    found = {f"p{share}": digits(ordered[(len(ordered) - 1) * share // 100]) for share in _PERCENTILES}
    return {**found, "mean": digits(statistics.mean(values)), "max": digits(ordered[-1])}
