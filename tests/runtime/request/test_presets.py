from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.model_kinds import KINDS, ModelKind, with_masks
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.request.request import Request, make_request
from sd2rt.runtime.request.resolve import resolve

IMAGE = np.zeros((64, 64, 3), np.uint8)


class Offered:
    """The part of a manifest that resolving a request uses."""

    low_resolution = None
    name = "paper"
    embeddings = SimpleNamespace(layers=3)

    def __init__(self, variant: ModelKind) -> None:
        self.variant, self.supported = variant, with_masks(KINDS[variant].tasks)


def resolved(variant: ModelKind = "base", **fields: Any) -> Request:
    return resolve(make_request(prompt="a", **fields), Offered(variant))  # type: ignore[arg-type]


def settings(request: Request) -> tuple[object, ...]:
    return request.sampler, request.schedule, request.num_inference_steps, request.guidance_scale


def test_presets_come_before_the_bundles_defaults() -> None:
    assert settings(resolved()) == (None, None, 50, 7.5)
    assert settings(resolved(preset="turbo")) == ("euler", "trailing", 1, 0.0)
    assert settings(resolved(preset="lcm")) == ("lcm", None, 4, 1.0)


def test_what_is_asked_comes_before_a_preset() -> None:
    asked: dict[str, Any] = {"sampler": "ddim", "schedule": "linspace", "num_inference_steps": 3}
    assert settings(resolved(preset="turbo", guidance_scale=0, **asked)) == ("ddim", "linspace", 3, 0)
    assert settings(resolved(preset="lcm", guidance_scale=1.5)) == ("lcm", None, 4, 1.5)


def test_turbo_starts_late_from_an_image() -> None:
    """With one step, a strength below 1 would leave no step to run."""
    request = resolved(preset="turbo", image=IMAGE)
    assert (request.num_inference_steps, request.strength) == (2, 0.5)
    request = resolved(preset="turbo", image=IMAGE, strength=0.9, num_inference_steps=4)
    assert (request.num_inference_steps, request.strength) == (4, 0.9)
    turbo = KINDS["turbo"].tasks["image-to-image"]
    assert (turbo.num_inference_steps, turbo.strength) == (2, 0.5)
    inpainting = resolved("inpainting", preset="turbo", image=IMAGE, mask_image=IMAGE[..., 0])
    assert (inpainting.num_inference_steps, inpainting.strength) == (1, 1.0)
    assert resolved(preset="lcm", image=IMAGE).strength == 0.8


def test_resolving_again_changes_nothing() -> None:
    request = resolved(preset="turbo", image=IMAGE)
    again = resolve(request, Offered("base"))  # type: ignore[arg-type]
    assert again.model_dump() == request.model_dump()


def test_another_name_is_refused() -> None:
    with pytest.raises(RequestError, match="preset is 'fast': input should be 'turbo' or 'lcm'"):
        make_request(prompt="a", preset="fast")
