"""Samplers and schedulers by ComfyUI's names, which SwarmUI and Fooocus use too.

ComfyUI runs k-diffusion's samplers over noise levels of the model, as AUTOMATIC1111 does: the grid a1111 has both,
with the differences that the notes state.
"""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.sampler_config import (
    A1111_SCHEDULES,
    A1111Schedule,
    SamplerName,
    schedules_of,
)
from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.imported import ImportedSettings

_SAMPLERS: dict[str, SamplerName] = {
    "euler": "euler",
    # Its DDIM without fresh noise is Euler's method.
    "ddim": "euler",
    "euler_ancestral": "euler-a",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2-a",
    "dpm_fast": "dpm-fast",
    "lms": "lms",
    "dpmpp_2s_ancestral": "dpmpp-2s-a",
    "dpmpp_sde": "dpmpp-sde",
    "dpmpp_2m": "dpmpp-2m",
    "dpmpp_2m_sde": "dpmpp-2m-sde",
    "dpmpp_2m_sde_heun": "dpmpp-2m-sde",
    "dpmpp_3m_sde": "dpmpp-3m-sde",
    "lcm": "lcm",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "dpmpp_2m_sde_heun": {"solver_type": "heun"},
    "uni_pc_bh2": {"solver_type": "bh2"},
}
_OTHER_GRID: dict[str, SamplerName] = {
    "deis": "deis",
    "ddpm": "ddpm",
    "ipndm": "ipndm",
    "sa_solver": "sa-solver",
}
"""Samplers that the grid a1111 does not have."""

_SAMPLER_NOTES: dict[str, str] = {
    "dpmpp_3m_sde": "the grid a1111 leaves out its next-to-last noise level, which {program} keeps",
    "lcm": "the grid a1111 knows 50 timesteps, {program} all of them unless the model is patched",
    "uni_pc": "the grid a1111 visits evenly spaced timesteps, {program} those of its scheduler",
}
_SAMPLER_NOTES["uni_pc_bh2"] = _SAMPLER_NOTES["uni_pc"]

_SAMPLER_NOTES["dpm_fast"] = "{program} ends at the scheduler's lowest level, the grid a1111 at the model's"

_DRAWS_NOISE = ("euler-a", "dpm2-a", "dpmpp-2s-a", "lcm")
"""Samplers whose steps draw noise, on the device of the network."""

_SCHEDULES: dict[str, A1111Schedule] = {
    "normal": "normal",
    "karras": "karras",
    "exponential": "exponential",
    "sgm_uniform": "sgm-uniform",
    "simple": "simple",
    "ddim_uniform": "ddim",
    "beta": "beta",
    "kl_optimal": "kl-optimal",
    "align_your_steps": "ays",
}
_SCHEDULE_NOTES: dict[str, str] = {
    "beta": "{program} rounds its quantiles to whole timesteps, the grid a1111 takes noise levels between",
    "kl_optimal": "{program} reaches the lowest noise level one step earlier and ends at 0",
    "align_your_steps": "{program} has other levels between those of its authors",
}

_MAX_STEPS = 10_000
"""More than any image is made with; a denoise of 1e-9 would ask for more."""


def add_sampler(settings: ImportedSettings, name: object, scheduler: object) -> None:
    """Set sampler and schedule, with notes on what differs from the program's own."""
    if not isinstance(name, str):
        settings.note_ignored("Sampler", name)
        settings.note_ignored("Scheduler", scheduler)
        return
    program, plain = settings.program, name.removesuffix("_gpu")
    if plain in _OTHER_GRID:
        settings.fields["sampler"] = _OTHER_GRID[plain]
        settings.notes.append(
            f"Sampler {name} has diffusers' noise levels and formulas here: {program}'s picture differs"
        )
        if scheduler in schedules_of(_OTHER_GRID[plain]):
            settings.fields["schedule"] = scheduler
        else:
            settings.note_ignored("Scheduler", scheduler)
        return
    if plain not in _SAMPLERS:
        settings.notes.append(
            f"Sampler {shown(name)} of {program} is not supported: the bundle's default is used"
        )
        settings.note_ignored("Scheduler", scheduler)
        return
    sampler = _SAMPLERS[plain]
    settings.fields |= {"sampler": sampler, "grid": "a1111"}
    if plain in _OPTIONS:
        settings.fields["sampler_options"] = dict(_OPTIONS[plain])
    if plain in _SAMPLER_NOTES:
        note = _SAMPLER_NOTES[plain].format(program=program)
        settings.notes.append(f"Sampler {name}: {note}; the picture differs")
    if sampler in _DRAWS_NOISE or name.endswith("_gpu"):
        settings.notes.append(
            f"Sampler {name}: {program} draws the noise of its steps on the GPU, here the CPU's numbers are used; "
            "the picture differs"
        )
    _add_schedule(settings, sampler, scheduler)


def _add_schedule(settings: ImportedSettings, sampler: SamplerName, scheduler: object) -> None:
    """Set the schedule of a sampler in the grid a1111."""
    program = settings.program
    schedule = _SCHEDULES.get(scheduler) if isinstance(scheduler, str) else None
    if schedule is None:
        if "normal" in A1111_SCHEDULES[sampler]:
            settings.fields["schedule"] = "normal"
        if scheduler is not None:
            settings.notes.append(f"Scheduler {shown(str(scheduler))} is not supported: normal is used")
    elif schedule in A1111_SCHEDULES[sampler]:
        settings.fields["schedule"] = schedule
        if scheduler in _SCHEDULE_NOTES:
            note = _SCHEDULE_NOTES[str(scheduler)].format(program=program)
            settings.notes.append(f"Scheduler {scheduler}: {note}; the picture differs")


def add_start(settings: ImportedSettings, steps: object, denoise: object) -> None:
    """Set steps, and the strength of a start from an image.

    ComfyUI makes as many steps as are asked for: it lays out int(steps / denoise) of them, and begins with the last
    ``steps``. The grid a1111 lays out ``num_inference_steps``, and makes 1 + int(strength x these).
    """
    settings.add_number("steps", "num_inference_steps", steps, int)
    if not settings.from_image:
        return
    made = settings.fields.get("num_inference_steps")
    try:
        share = float(denoise) if isinstance(denoise, int | float | str) else 1.0
        total = int(made / share) if made is not None else 0
    except (ValueError, OverflowError, ZeroDivisionError):
        settings.note_ignored("denoise", denoise)
        return
    if made is None or not 0 < share <= 1 or not made <= total <= _MAX_STEPS:
        settings.note_ignored("denoise", denoise)
        return
    if settings.fields.get("grid") != "a1111":
        settings.fields |= {"num_inference_steps": total, "strength": min((made + 0.5) / total, 1.0)}
    elif made < total:
        # A half step more, so that rounding does not matter.
        settings.fields |= {"num_inference_steps": total, "strength": (made - 0.5) / total}
    else:
        settings.fields["strength"] = 1.0
