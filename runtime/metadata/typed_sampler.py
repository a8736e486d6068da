"""Samplers and schedules by the names that people type: those of AUTOMATIC1111, k-diffusion and diffusers too."""

from __future__ import annotations

import re

from sd2rt.engines.bundle.sampler_config import SCHEDULES as OWN_SCHEDULES
from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.runtime.metadata.sampler_names import (
    SAMPLERS,
    SCHEDULE_NAMES,
    SCHEDULES,
    UNNAMED_SAMPLERS,
)


def _letters(name: str) -> str:
    """Letters and digits of a name, so that spelling variants are alike: DPM++ 2M, dpmpp_2m and dpmpp-2m."""
    return re.sub(r"[^a-z0-9]", "", name.casefold().replace("++", "pp"))


_SAMPLERS: dict[str, SamplerName] = {
    **{_letters(label): name for name, label in SAMPLERS.items()},
    **{_letters(name): name for name in (*SAMPLERS, *UNNAMED_SAMPLERS)},
    "eulerancestral": "euler-a",
    "dpm2ancestral": "dpm2-a",
    "kdpm2ancestral": "dpm2-a",
    "kdpm2": "dpm2",
    "plms": "pndm",
    "dpmsolver": "dpmpp-2m",
    "dpmsolverpp": "dpmpp-2m",
    "dpmsolversinglestep": "dpmpp-2s",
    "dpmsolversde": "dpmpp-sde",
    "unipcbh2": "unipc",
}
_SCHEDULES: dict[str, str] = {
    **{_letters(label): name for name, label in SCHEDULES.items()},
    **{_letters(name): name for name in OWN_SCHEDULES},
    "sgmuniform": "trailing",
    "simple": "trailing",
    "uniform": "linspace",
    "normal": "linspace",
}
_A1111_SCHEDULES = {"automatic": "automatic"} | {
    _letters(name): own for label, own in SCHEDULE_NAMES.values() for name in (label, own)
}
_NOISE = re.compile(r"^(?:sample|k)(?=euler|dpm|heun|lms)|(?:discrete|multistep)?scheduler$|discrete$")


def typed_sampler(text: str, grid: str = "diffusers") -> tuple[str, str | None]:
    """Return a sampler, and the schedule that its name ends with, as in DPM++ 2M Karras; unknown text as it is."""
    letters = _letters(text)
    if (sampler := _sampler(letters)) is not None:
        return sampler, None
    for ending, schedule in _schedules(grid).items():
        if letters.endswith(ending) and (sampler := _sampler(letters.removesuffix(ending))) is not None:
            return sampler, schedule
    return text, None


def _sampler(letters: str) -> SamplerName | None:
    return _SAMPLERS.get(letters) or _SAMPLERS.get(_NOISE.sub("", letters))


def typed_schedule(text: str, grid: str = "diffusers") -> str:
    """Return a grid's schedule by its own or AUTOMATIC1111's name; unknown text as it is."""
    return _schedules(grid).get(_letters(text), text)


def _schedules(grid: str) -> dict[str, str]:
    return _A1111_SCHEDULES if grid == "a1111" else _SCHEDULES
