"""Write docs/samplers.md: description, options, plot, and deviation from diffusers of every sampler.

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

from .cases import K_DIFFUSION, NAMES, STEPS, compared, levels_of, noise_config
from .reference_schedulers import Draws, reference, trajectory_error
from .test_k_diffusion import formula_error

DOCS = Path("docs")
_SHOWN_STEPS = 20
_STRENGTH = 0.6


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
            f"| {table:.0e} | {'-' if name in K_DIFFUSION else f'{single:.0e}'} |"
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
    """Largest errors of our plans and of diffusers in float32, against diffusers in float64, and the number of cases:
    both predictions, every schedule that diffusers has for the sampler, from noise and from an image."""
    if name in K_DIFFUSION:
        worst, cases = formula_error(name)
        return worst, math.nan, cases
    worst = single = 0.0
    cases = 0
    # Samplers with spacings have their default among the schedules.
    default = [] if "spacing" in SAMPLER_OPTIONS[name] else [None]
    for schedule in [*default, *(s for s in schedules_of(name) if s != "ays")]:
        if schedule in ("karras", "exponential", "beta", "lambdas") and schedule not in levels_of(name):
            continue
        for prediction in ("epsilon", "v_prediction"):
            for steps in STEPS:
                for strength in (None, _STRENGTH):
                    actual = error(name, schedule, prediction, SamplingOptions(steps, strength=strength))
                    if actual is not None:
                        worst, single, cases = max(worst, actual[0]), max(single, actual[1]), cases + 1
    return worst, single, cases


def error(
    name: SamplerName, schedule: str | None, prediction: Any, options: SamplingOptions
) -> tuple[float, float] | None:
    """Errors of our plan and of diffusers in float32; None if ours or diffusers does not support the case."""
    kind: PredictionType = prediction
    noise, config = noise_config(kind), config_of(name, schedule)
    try:
        ours, theirs = compared(noise, config, options)
    except (RequestError, ValueError, IndexError):
        return None
    actual = trajectory_error(ours, theirs)
    if not math.isfinite(actual):
        return None
    draws = Draws.seeded(len(ours.samples))
    rounded = reference(noise, config, options, draws, torch.float32, from_the_first=True)
    return actual, trajectory_error(rounded, theirs)


def section(name: SamplerName, table: float, single: float, cases: int) -> str:
    sampler = SAMPLERS[name]
    description = inspect.getdoc(sampler.make) or ""
    description = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", description)
    choices = choices_of(name)
    options = [
        f"`{option}` = {shown(value)}{either(choices.get(option))}"
        for option, value in SAMPLER_OPTIONS[name].items()
    ]
    options = [option for option in options if not option.startswith(("`spacing`", "`levels`"))]
    schedules = ", ".join(f"`{schedule}`" for schedule in schedules_of(name)) or "its own timesteps"
    default = SAMPLER_OPTIONS[name].get("spacing", "linspace" if "levels" in SAMPLER_OPTIONS[name] else None)
    scheduler = "IPNDMScheduler, with another noise schedule"
    if name in K_DIFFUSION:
        scheduler = "none"
    elif name in SCHEDULERS:
        scheduler = SCHEDULERS[name].name
    measured = f"against diffusers in float64: {table:.1e}; diffusers in float32: {single:.1e}"
    if name in K_DIFFUSION:
        measured = f"against the formulas in float64: {table:.1e}"
    return "\n".join(
        [
            f"## {name}",
            "",
            description,
            "",
            f"- From: {paper(sampler.paper)}; in diffusers: {scheduler}",
            f"- Order {sampler.order}; {sampler.evaluations} network call"
            f"{'' if sampler.evaluations == 1 else 's'} per step; fresh noise: {sampler.noise}",
            f"- Schedules: {schedules}" + (f"; `{default}` by default" if default else ""),
            f"- Options: {', '.join(options) or 'none'}",
            f"- Largest error of {cases} trajectories {measured}",
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

A sampler is a function from a noise schedule, options and a number of steps to a list of small matrices, one
for each call of the network ([decisions](decisions.md#the-denoiser-is-a-whole-step)). `make samplers` generates
this page from the code.

| column | meaning |
| --- | --- |
| order | order of convergence, measured on Gaussian data (`tests/runtime/samplers/test_convergence.py`) |
| error | largest relative difference, at any call, from diffusers' scheduler of that name in float64 |
| diffusers | the same difference for that scheduler in its usual float32 |

Errors are measured with the same random outputs and noises on both sides, for epsilon and v predictions,
{", ".join(map(str, STEPS))} steps, and every schedule that diffusers has for the sampler, from noise and from an
image (strength {_STRENGTH}). The bound is 1e-5. `ays` is not compared, because no diffusers scheduler has it. The
noise levels of `euler-a` and `ipndm` are compared with those of `EulerDiscreteScheduler` and
`DPMSolverMultistepScheduler`, because their own classes have none. Samplers that diffusers does not have (-) are
compared with k-diffusion's formulas (`tests/runtime/samplers/test_k_diffusion.py`).

A plot shows, for each call, the noise level, the network's timestep, and the weights of the next sample: the
sample S_0, earlier values (S_1 to S_4), the network's output D, and fresh noise. With `--strength`, sampling
starts from a noised image: a times the image plus b times noise. Values of `--sampler-option` are JSON; "with
eta" means `--eta`.

```sh
sd2rt samplers                          # this list; with a name, the sampler's options too
sd2rt samplers unipc --plot unipc.png --steps 12 --schedule karras --sampler-option solver_order=3
sd2rt run sd21 "a harbour" --sampler unipc --schedule karras --sampler-option solver_order=3
```

| name | method | order | calls per step | fresh noise | error | diffusers |
| --- | --- | --- | --- | --- | --- | --- |"""

_SCHEDULES = """## Schedules

`--schedule` selects the noise levels of a sampler. `leading`, `trailing` and `linspace` are spacings of timesteps
([arXiv:2305.08891](https://arxiv.org/abs/2305.08891), table 2). The others are rules for noise levels between the
ends of the noise schedule: `karras` ([arXiv:2206.00364](https://arxiv.org/abs/2206.00364), rho 7), `exponential`
and `lambdas` (evenly spaced logarithms; they round timesteps differently), `beta`
([arXiv:2407.12173](https://arxiv.org/abs/2407.12173)), `ays` (Align Your Steps,
[arXiv:2404.14507](https://arxiv.org/abs/2404.14507), with its levels for Stable Diffusion 1.5, whose noise
schedule SD2 shares). `--timesteps` and `--sigmas` set custom ones; `--zero-snr` makes the last timestep pure noise.
"""

if __name__ == "__main__":
    main()
