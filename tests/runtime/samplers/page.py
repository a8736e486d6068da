"""Writes docs/samplers.md: every sampler, what it takes, its picture, and how far its table is from diffusers.

    python -m tests.runtime.samplers.page

Run from the repository's root; it takes a minute.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, PredictionType, SamplerConfig, SamplerName
from sd2rt.engines.errors import RequestError
from sd2rt.export.checkpoints.scheduler_table import SCHEDULERS
from sd2rt.runtime.cli.samplers_plot import draw
from sd2rt.runtime.samplers import (
    SAMPLERS,
    SamplingOptions,
    choices_of,
    make_plan,
    sampler_config,
    schedules_of,
)

from .cases import NAMES, STEPS, compared, levels_of, noise_config
from .reference_schedulers import Draws, reference, trajectory_error

DOCS = Path("docs")
_SHOWN_STEPS = 20
_LATE = 0.6


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    (DOCS / "samplers").mkdir(exist_ok=True)
    rows, sections = [], []
    for name in NAMES:
        print(name, file=sys.stderr)
        sampler, (table, single, cases) = SAMPLERS[name], errors(name)
        rows.append(
            f"| [`{name}`](#{name}) | {sampler.title} | {sampler.order} | {sampler.evaluations} | {sampler.noise} "
            f"| {table:.0e} | {single:.0e} |"
        )
        draw(
            {name: make_plan(noise_config(), config_of(name), SamplingOptions(_SHOWN_STEPS))},
            DOCS / "samplers" / f"{name}.png",
        )
        sections.append(section(name, table, single, cases))
    text = "\n".join([_HEAD, *rows, "", _SCHEDULES, *sections])
    (DOCS / "samplers.md").write_text(text.rstrip() + "\n")


def config_of(name: SamplerName, schedule: str | None = None) -> SamplerConfig:
    return sampler_config(name, schedule=schedule)


def errors(name: SamplerName) -> tuple[float, float, int]:
    """The worst error of our table and of diffusers' own float32, against diffusers in float64, and of how many
    trajectories: both predictions, every schedule that diffusers has for it, from noise and late."""
    worst = single = 0.0
    cases = 0
    # The usual one is among them, where there are spacings.
    unnamed = [] if "spacing" in SAMPLER_OPTIONS[name] else [None]
    for schedule in [*unnamed, *(s for s in schedules_of(name) if s != "ays")]:
        if schedule in ("karras", "exponential", "beta", "lambdas") and schedule not in levels_of(name):
            continue
        for prediction in ("epsilon", "v_prediction"):
            for steps in STEPS:
                for strength in (None, _LATE):
                    found = error(name, schedule, prediction, SamplingOptions(steps, strength=strength))
                    if found is not None:
                        worst, single, cases = max(worst, found[0]), max(single, found[1]), cases + 1
    return worst, single, cases


def error(
    name: SamplerName, schedule: str | None, prediction: Any, options: SamplingOptions
) -> tuple[float, float] | None:
    """None where there is no such trajectory, here or in diffusers."""
    kind: PredictionType = prediction
    noise, config = noise_config(kind), config_of(name, schedule)
    try:
        ours, theirs = compared(noise, config, options)
    except (RequestError, ValueError, IndexError):
        return None
    found = trajectory_error(ours, theirs)
    if not math.isfinite(found):
        return None
    draws = Draws.seeded(len(ours.samples))
    rounded = reference(noise, config, options, draws, torch.float32, from_the_first=True)
    return found, trajectory_error(rounded, theirs)


def section(name: SamplerName, table: float, single: float, cases: int) -> str:
    sampler = SAMPLERS[name]
    what = inspect.getdoc(sampler.make) or ""
    what = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", what)
    choices = choices_of(name)
    options = [
        f"`{option}` = {shown(value)}{either(choices.get(option))}"
        for option, value in SAMPLER_OPTIONS[name].items()
    ]
    options = [option for option in options if not option.startswith(("`spacing`", "`levels`"))]
    schedules = ", ".join(f"`{schedule}`" for schedule in schedules_of(name)) or "its own timesteps"
    usual = SAMPLER_OPTIONS[name].get("spacing", "linspace" if "levels" in SAMPLER_OPTIONS[name] else None)
    known = SCHEDULERS[name].name if name in SCHEDULERS else "IPNDMScheduler, whose noise schedule is another"
    return "\n".join(
        [
            f"## {name}",
            "",
            what,
            "",
            f"- From: {paper(sampler.paper)}; in diffusers: {known}",
            f"- Order {sampler.order}; {sampler.evaluations} network call"
            f"{'' if sampler.evaluations == 1 else 's'} a step; fresh noise: {sampler.noise}",
            f"- Schedules: {schedules}" + (f"; `{usual}` where none is named" if usual else ""),
            f"- Options: {', '.join(options) or 'none'}",
            f"- Worst of {cases} trajectories against diffusers in float64: {table:.1e}; diffusers in float32: "
            f"{single:.1e}",
            "",
            f"![{name}: noise levels, timesteps and weights of {_SHOWN_STEPS} steps](samplers/{name}.png)",
            "",
        ]
    )


def paper(source: str) -> str:
    number = source.removeprefix("arXiv:")
    return f"[{source}](https://arxiv.org/abs/{number})" if number != source else source


def either(choices: tuple[Any, ...] | None) -> str:
    return "" if choices is None else f" ({' or '.join(map(str, choices))})"


def shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


_HEAD = f"""# Samplers

Every sampler is a function from a noise schedule, options and a number of steps to a list of small matrices, one
for each network call ([design](decisions.md)). This page is made by `make samplers`, from the tables themselves.

`error` is the proof: the worst relative difference, at any call, between a table and diffusers' scheduler of the
same name, which is driven in float64 over the same random outputs and noises; both predictions,
{", ".join(map(str, STEPS))} steps, every schedule that diffusers has for it, from noise and from an image (strength
{_LATE}); `ays` is not a scheduler's there, and the levels of `euler-a` and `ipndm` are another class's. The bound
is 1e-5.
`diffusers` is how far that scheduler is from itself when it runs in its own float32. `order` is that of convergence,
measured on Gaussian data, for which the solution is known (tests/runtime/samplers/test_convergence.py).

A picture shows, call by call, the noise level and the timestep that the network is told, and the weights of what
the next sample is summed of: the sample S_0, what the method remembers (S_1 to S_4), the network's output D, and
fresh noise. A late start begins with a times the image and b times noise. Values of `--sampler-option` are JSON;
"with eta" is `--eta`.

    sd2rt samplers                          # this list; with a name, its options too
    sd2rt samplers unipc --plot unipc.png --steps 12 --schedule karras --sampler-option solver_order=3
    sd2rt run BUNDLE "a prompt" --sampler unipc --schedule karras --sampler-option solver_order=3

| name | method | order | calls a step | fresh noise | error | diffusers |
| --- | --- | --- | --- | --- | --- | --- |"""

_SCHEDULES = """## Schedules

`--schedule` says which noise levels a sampler goes through. `leading`, `trailing` and `linspace` space timesteps
([arXiv:2305.08891](https://arxiv.org/abs/2305.08891), table 2); the others choose noise levels, between the
schedule's ends: `karras` ([arXiv:2206.00364](https://arxiv.org/abs/2206.00364), rho 7), `exponential` and `lambdas`
(even logarithms; they differ in how timesteps are rounded), `beta`
([arXiv:2407.12173](https://arxiv.org/abs/2407.12173)), `ays` (Align Your Steps,
[arXiv:2404.14507](https://arxiv.org/abs/2404.14507); its Stable Diffusion 1.5 levels, as SD2 has the same noise
schedule). `--timesteps` and `--sigmas` give the list itself, and `--zero-snr` makes the last timestep
pure noise.
"""

if __name__ == "__main__":
    main()
