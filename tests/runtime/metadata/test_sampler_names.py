"""AUTOMATIC1111's names of samplers and schedules."""

from __future__ import annotations

import pytest

from sd2rt.engines.bundle.sampler_config import A1111_SCHEDULES, SAMPLER_OPTIONS
from sd2rt.runtime.metadata.sampler_names import (
    SAMPLERS,
    SCHEDULE_NAMES,
    UNNAMED_SAMPLERS,
    FoundSampler,
    find_sampler,
)


def test_every_sampler_is_found_by_its_name() -> None:
    assert {*SAMPLERS, *UNNAMED_SAMPLERS} == set(SAMPLER_OPTIONS)
    for name, label in SAMPLERS.items():
        for text in (label, label.lower(), name):
            found = find_sampler(text, "automatic")
            assert found is not None
            assert found.sampler == name


def test_every_schedule_is_found_by_name_and_label() -> None:
    for name, (label, own) in SCHEDULE_NAMES.items():
        assert find_sampler("DPM++ 2M", name) == find_sampler("DPM++ 2M", label)
        found = find_sampler("DPM++ 2M", name)
        assert found is not None
        assert found.schedule == own
        assert own in A1111_SCHEDULES["dpmpp-2m"]


@pytest.mark.parametrize(
    ("label", "schedule", "found"),
    [
        ("Euler a", "automatic", FoundSampler("euler-a", None)),
        ("Euler a", None, FoundSampler("euler-a", "uniform")),
        ("DPM++ 2M", "Automatic", FoundSampler("dpmpp-2m", None)),
        ("DEIS", "Karras", FoundSampler("deis", "karras", grid="diffusers")),
        ("DEIS", "KL Optimal", FoundSampler("deis", None, "KL Optimal", grid="diffusers")),
        ("DPM++ 2M Karras", "automatic", FoundSampler("dpmpp-2m", "karras")),
        (
            "DPM++ 2M SDE Heun",
            "karras",
            FoundSampler("dpmpp-2m-sde", "karras", None, {"solver_type": "heun"}),
        ),
        ("DDIM", "automatic", FoundSampler("ddim", None)),
        ("DDIM", "karras", FoundSampler("ddim", None)),
        ("LCM", "automatic", FoundSampler("lcm", None)),
        ("Euler", "kl_optimal", FoundSampler("euler", "kl-optimal")),
        ("DPM adaptive", None, None),
    ],
)
def test_names(label: str, schedule: str | None, found: FoundSampler | None) -> None:
    assert find_sampler(label, schedule) == found
