from __future__ import annotations

import pytest

from sd2rt.runtime.metadata.sampler_names import SAMPLERS, SCHEDULES, UNNAMED_SAMPLERS
from sd2rt.runtime.metadata.typed_sampler import typed_sampler, typed_schedule


@pytest.mark.parametrize("name", [*SAMPLERS, *UNNAMED_SAMPLERS])
def test_own_names(name: str) -> None:
    assert typed_sampler(name) == (name, None)
    assert typed_sampler(name.upper().replace("-", "_")) == (name, None)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_names_of_a1111(name: str, schedule: str) -> None:
    label = SAMPLERS[name]  # type: ignore[index]
    assert typed_sampler(label) == (name, None)
    assert typed_sampler(f"{label} {SCHEDULES[schedule]}") == (name, schedule)


@pytest.mark.parametrize(
    ("text", "sampler"),
    [
        ("k_euler_a", "euler-a"),
        ("k_dpm_2_ancestral", "dpm2-a"),
        ("sample_dpmpp_2m", "dpmpp-2m"),
        ("EulerAncestralDiscreteScheduler", "euler-a"),
        ("DPMSolverMultistepScheduler", "dpmpp-2m"),
        ("UniPCMultistepScheduler", "unipc"),
        ("LMSDiscreteScheduler", "lms"),
        ("PLMS", "pndm"),
        ("Euler Ancestral", "euler-a"),
    ],
)
def test_names_of_other_programs(text: str, sampler: str) -> None:
    assert typed_sampler(text) == (sampler, None)


@pytest.mark.parametrize("text", ["", "eular", "karras", "DPM++ 5M", "\ud800"])
def test_unknown_names(text: str) -> None:
    assert typed_sampler(text) == (text, None)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "trailing"),
        ("Align Your Steps", "ays"),
        ("kar", "kar"),
        ("", ""),
    ],
)
def test_schedules(text: str, schedule: str) -> None:
    assert typed_schedule(text) == schedule


def test_names_of_schedule_types_of_the_grid_a1111() -> None:
    assert typed_schedule("SGM Uniform", "a1111") == "sgm-uniform"
    assert typed_schedule("align_your_steps", "a1111") == typed_schedule("AYS", "a1111") == "ays"
    assert typed_sampler("DPM++ 2M KL Optimal", "a1111") == ("dpmpp-2m", "kl-optimal")
    assert typed_sampler("DPM++ 3M SDE Exponential", "a1111") == ("dpmpp-3m-sde", "exponential")
