"""Pictures with AUTOMATIC1111's grid, against its samplers as plain loops over the same denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.compatibility.__main__ import difference
from sd2rt import Pipeline, RequestError

EXACT = 1e-5
SHARP = 5e-3
"""For samplers whose noise depends on the last bit of a level."""


@pytest.fixture(scope="module", params=["small_bundle", "small_v_bundle"])
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
def test_latents_of_every_kind_of_list(bundle: Path) -> None:
    with Pipeline.open(bundle, threads=1) as pipe, Pipeline.open(bundle, threads=1) as networks:
        for sampler, schedule, steps, bound in (
            ("Euler a", "SGM Uniform", 8, EXACT),
            ("DPM++ 2M", "Automatic", 8, EXACT),
            ("DPM2", "KL Optimal", 5, EXACT),
            ("LCM", "Automatic", 4, EXACT),
            ("PLMS", "Automatic", 9, EXACT),
            ("UniPC", "Automatic", 17, EXACT),
            ("DPM++ 2M SDE Heun", "Automatic", 8, SHARP),
            ("DPM++ SDE", "Karras", 5, SHARP),
        ):
            for from_image in (False, True):
                found = difference(pipe, networks, sampler, schedule, steps, from_image)
                assert found <= bound, (sampler, schedule, from_image)


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
def test_the_area_that_a_mask_keeps(bundle: Path) -> None:
    with Pipeline.open(bundle, threads=1) as pipe, Pipeline.open(bundle, threads=1) as networks:
        for sampler, steps in (
            *(("Euler", 6), ("Euler a", 8), ("DPM++ 2M", 8), ("DPM++ 2S a", 5), ("Heun", 5), ("DPM2 a", 5)),
            *(
                ("LMS", 8),
                ("LCM", 4),
                ("Restart", 21),
                ("DPM fast", 7),
                ("DDIM", 9),
                ("PLMS", 9),
                ("UniPC", 17),
            ),
        ):
            assert difference(pipe, networks, sampler, "Automatic", steps, True, masked=True) <= EXACT, (
                sampler
            )
        for sampler in ("DPM++ 2M SDE", "DPM++ SDE", "DPM++ 3M SDE"):
            assert difference(pipe, networks, sampler, "Karras", 8, True, masked=True) <= SHARP, sampler


def test_images_of_a_batch_are_those_alone(small_bundle: Path) -> None:
    options: dict[str, Any] = {
        "sampler": "dpmpp-2m-sde",
        "grid": "a1111",
        "num_inference_steps": 4,
        "width": 64,
        "height": 64,
        "output_type": "latent",
    }
    with Pipeline.open(small_bundle, threads=1) as pipe:
        together = pipe("a fox", seed=3, num_images_per_prompt=2, **options).images
        for index, latents in enumerate(together):
            alone = pipe("a fox", seed=3 + index, **options).images[0]
            assert np.abs(latents - alone).max() <= 1e-4 * np.abs(alone).max()
        assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": "trailing"},
            "the grid a1111 has no schedule 'trailing': choose one of automatic, uniform",
        ),
        ({"sampler": "deis"}, "no sampler deis: choose one of .*, or the grid diffusers"),
        ({"sampler": "unipc", "schedule": "karras"}, "unipc has no schedule types in the grid a1111"),
        ({"sampler": "euler", "sampler_options": {"s_churn": 1.0}}, "has no option s_churn: leave it out"),
        ({"timesteps": [900, 3]}, "timesteps cannot be combined with the grid a1111"),
        ({"sampler": "euler", "eta": 0.5}, "euler does not support eta"),
    ],
)
def test_requests_that_cannot_be_honoured(small_bundle: Path, options: dict[str, Any], message: str) -> None:
    with (
        Pipeline.open(small_bundle, threads=1) as pipe,
        pytest.raises(RequestError, match=message) as refusal,
    ):
        pipe("a fox", grid="a1111", num_inference_steps=2, **options)
    assert "\n" not in str(refusal.value)
