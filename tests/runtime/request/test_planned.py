"""Requests planned from a manifest: defaults filled in, one plan for those that are sampled alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.errors import RequestError
from sd2rt.runtime import Pipeline
from sd2rt.runtime.request.planned import plan_requests
from sd2rt.runtime.request.request import make_request


@pytest.fixture
def manifest(small_bundle: Path) -> Manifest:
    return read_manifest(small_bundle)


def test_defaults_are_filled_in(manifest: Manifest) -> None:
    (planned,) = plan_requests([make_request(prompt="a")], manifest)
    assert planned.task.name == "text-to-image"
    assert planned.request.num_inference_steps == manifest.tasks["text-to-image"].num_inference_steps
    assert planned.request.guidance_scale == manifest.tasks["text-to-image"].guidance_scale
    assert planned.strength is None
    # A resolved request is planned alike: nothing is left to fill in.
    (again,) = plan_requests([planned.request], manifest)
    assert again.request == planned.request


@pytest.mark.parametrize(
    "fields",
    [
        {"num_inference_steps": 7},
        {"sampler": "ddim", "timesteps": (900.0, 500.0, 20.0)},
        {"sampler": "euler", "sigmas": (9.0, 3.0, 0.0)},
        {"sampler": "euler"},
        {"sampler": "dpmpp-2m", "schedule": "karras"},
        {"sampler": "dpmpp-2m", "sampler_options": {"solver_order": 3}},
        {"sampler": "ddim", "eta": 0.5},
        {"rescale_betas_zero_snr": True},
        {"preset": "lcm"},
    ],
)
def test_plans_are_shared_by_what_they_follow_from(manifest: Manifest, fields: dict[str, Any]) -> None:
    requests = [
        make_request(prompt="a", seed=1),
        make_request(prompt="b", negative_prompt="c", seed=2, guidance_scale=3.0, width=64, height=128),
        make_request(prompt="a", seed=1, **fields),
        make_request(prompt="d", seed=5, **fields),
    ]
    planned = plan_requests(requests, manifest)
    assert planned[0].plan is planned[1].plan
    assert planned[2].plan is planned[3].plan
    assert planned[2].plan is not planned[0].plan
    for alone, request in zip(planned, requests, strict=True):
        (own,) = plan_requests([request], manifest)
        assert own.plan.levels == alone.plan.levels
        assert [step.timestep for step in own.plan.steps] == [step.timestep for step in alone.plan.steps]


def test_another_bundles_plans_are_refused(small_bundle: Path) -> None:
    with Pipeline.open(small_bundle, threads=1) as pipe:
        (planned,) = pipe.plan([make_request(prompt="a", num_inference_steps=1, seed=3)])
        other = type(planned)(planned.request, planned.task, planned.plan, "0" * 64)
        with pytest.raises(RequestError, match="planned for another bundle"):
            pipe.stream_planned([planned, other])
        with pipe.stream_planned([planned]) as run:
            assert run.result()[0].seeds == [3]
