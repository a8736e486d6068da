from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.sampler_config import NoiseConfig
from sd2rt.runtime.denoising.trajectory import Trajectory, batchable
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.samplers import SamplingOptions, make_plan, sampler_config

NOISE = NoiseConfig(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
)
PLAN = make_plan(NOISE, sampler_config("ddim"), SamplingOptions(4))


def conditioning(tokens: int = 77) -> TextConditioning:
    return TextConditioning((np.zeros((tokens, 8), np.float32),))


def trajectory(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "plan": PLAN,
        "latents": np.zeros((4, 8, 8), np.float32),
        "texts": (conditioning(),) * 4,
        "guidance": np.array([[1, 0]] * 4, np.float32),
        "generator": Generator(0),
        "seed": 0,
    }
    return Trajectory(**{**fields, **changes})


def test_it_knows_where_its_texts_change() -> None:
    one, other = conditioning(), conditioning()
    assert trajectory().texts_change == (False, False, False, False, True)
    assert trajectory(texts=(one, other, other, one)).texts_change == (False, True, False, True, True)


def test_it_knows_where_its_guidance_changes() -> None:
    assert trajectory().guidance_changes == (False,) * 4
    guidance = np.array([[7, 0], [7, 0.5], [7, 0.5], [3, 0.5]], np.float32)
    assert trajectory(guidance=guidance).guidance_changes == (False, True, False, True)


@pytest.mark.parametrize(
    "changes", [{"texts": (conditioning(),) * 3}, {"guidance": np.ones((3, 2))}, {"guidance": np.ones(4)}]
)
def test_every_call_has_texts_and_guidance(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="for 4 calls"):
        trajectory(**changes)


def of_lengths(*lengths: int, side: int = 8) -> list[Trajectory]:
    latents = np.zeros((4, 8, side), np.float32)
    return [trajectory(texts=(conditioning(length),) * 4, latents=latents) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ((77, 77, 77), [[0, 1, 2]]),
        ((77, 154, 77, 231), [[0, 2, 3], [1]]),
        ((154, 77, 462, 231), [[0, 1, 2, 3]]),
        ((10, 77), [[0], [1]]),
    ],
)
def test_texts_share_a_batch_where_their_length_divides_the_longest(
    lengths: tuple[int, ...], groups: list[list[int]]
) -> None:
    trajectories = of_lengths(*lengths)
    actual = [[trajectories.index(member) for member in group] for group in batchable(trajectories)]
    assert actual == groups


def test_latents_of_two_shapes_share_no_batch() -> None:
    small, wide = of_lengths(77), of_lengths(77, side=16)
    assert batchable([*small, *wide]) == [small, wide]


def test_texts_of_several_lengths_in_turn() -> None:
    (long,) = of_lengths(154)
    mixed = trajectory(texts=(conditioning(77), conditioning(154), conditioning(154), conditioning(77)))
    assert mixed.group == long.group


@pytest.mark.parametrize("sampler", ["euler-a", "ddim", "euler", "restart"])
@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 5, 7), (4, 48, 48)])
def test_noise_is_drawn_in_the_order_of_the_calls(sampler: str, shape: tuple[int, int, int]) -> None:
    options: dict[str, Any] = {"ddim": {"eta": 0.5}}.get(sampler, {})
    plan = make_plan(NOISE, sampler_config(sampler), SamplingOptions(21, **options))
    count = len(plan.steps)
    made = trajectory(
        plan=plan,
        latents=np.zeros(shape, np.float32),
        texts=(conditioning(),) * count,
        guidance=np.array([[1, 0]] * count, np.float32),
        generator=Generator(9),
    )
    alone = Generator(9)
    for index in range(count):
        if made.draws_noise[index]:
            expected = alone.randn(shape)
            np.testing.assert_array_equal(made.noise(), expected)
            # The call failed, and is made again.
            np.testing.assert_array_equal(made.noise(), expected)
        made.advance(None)
