"""AUTOMATIC1111's grid against loops in k-diffusion's form: every sampler and schedule type, from noise and image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch

from benchmarks.compatibility import a1111_reference as reference
from benchmarks.compatibility.k_diffusion_levels import signal_of
from benchmarks.compatibility.k_diffusion_loops import Array
from sd2rt.engines.bundle.sampler_config import (
    A1111_SCHEDULES,
    STATE_SLOTS,
    A1111Schedule,
    NoiseConfig,
    PredictionType,
    SamplerName,
)
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.metadata.sampler_names import SAMPLERS
from sd2rt.runtime.rng.brownian_path import BrownianPath
from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.samplers import SamplingOptions, a1111_config, make_plan
from sd2rt.runtime.samplers.noise_schedule import float32_linspace

from ..cases import noise_config

SHAPE = (4, 8, 8)
SEED = 5
EXACT = 1e-5
CLOSE = 5e-3
"""Bound for SDE samplers. PyTorch's float32 functions differ by machine in the last bit of a level, which moves the
place on the Brownian path if the level is above 4."""
SDE = ("dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde")
LABELS = dict(zip(get_args(A1111Schedule), reference.SCHEDULES, strict=True))
KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
CASES = [(name, schedule) for name, schedules in A1111_SCHEDULES.items() for schedule in schedules]

_MIXING = np.random.default_rng(0).standard_normal((256, 256)) / 16


def network(x: Array, timestep: float) -> Array:
    """A smooth function of all values and the timestep, as nonlinear as a network."""
    flat = x.reshape(-1)
    mixed = np.tanh(1.3 * _MIXING @ flat + 0.3 * np.cos(timestep / 90))
    return np.asarray((mixed + 0.5 * flat * np.sin(timestep / 333)).reshape(x.shape))


def planned(
    noise: NoiseConfig, name: str, schedule: A1111Schedule, options: dict[str, Any], sampling: SamplingOptions,
    image: Array | None,
) -> Array:  # fmt: skip
    """Follow a plan in float64."""
    plan = make_plan(noise, a1111_config(name, schedule, options), sampling)
    generator = Generator(SEED)
    first = generator.randn(SHAPE).astype(np.float64)
    state = np.zeros((STATE_SLOTS, *SHAPE))
    state[0] = plan.init_scale * first
    if plan.start_noise is not None:
        assert image is not None
        state[0] = plan.start_noise[0] * image + plan.start_noise[1] * first
    path = None if plan.path is None else BrownianPath("cpu", SEED, SHAPE, *plan.path)
    for step in plan.steps:
        output = network(np.tensordot(step.weights, state, 1), step.timestep)
        fresh = np.zeros(SHAPE, np.float32)
        if step.interval is not None:
            assert path is not None
            fresh = path.noise(*step.interval)
        elif step.draws_noise:
            fresh = generator.randn(SHAPE)
        state = np.tensordot(step.update, np.concatenate([state, output[None], fresh[None]]), 1)
    return np.asarray(state[0])


def expected(
    label: str, schedule: str, steps: int, kind: PredictionType, image: Any, strength: float | None
) -> Array:
    generator = Generator(SEED)

    def normals() -> Iterator[Array]:
        while True:
            yield generator.randn(SHAPE).astype(np.float64)

    signal = signal_of((0.00085, 0.012))
    run = reference.Run(
        steps, network, kind == "v_prediction", signal, normals(), SEED, image, strength or 1.0
    )
    return reference.latents(label, schedule, run)


def error(
    name: SamplerName, schedule: A1111Schedule, steps: int, kind: PredictionType, strength: float | None,
    options: dict[str, Any] | None = None,
) -> float:  # fmt: skip
    image = None if strength is None else np.random.default_rng(1).standard_normal(SHAPE)
    sampling = SamplingOptions(steps, strength=strength, a1111=schedule)
    label = SAMPLERS[name] + (" Heun" if options else "")
    actual = planned(noise_config(kind), name, schedule, options or {}, sampling, image)
    correct = expected(label, LABELS[schedule], steps, kind, image, strength)
    return float(np.abs(actual - correct).max() / np.abs(correct).max())


def bound_of(name: SamplerName) -> float:
    """EXACT, unless the loop's library rounds evenly spaced times otherwise: UniPC truncates them to timesteps."""
    if name != "unipc":
        return EXACT
    exact = all(
        np.array_equal(torch.linspace(1.0, 1e-3, count).numpy(), float32_linspace(1.0, 1e-3, count))
        for count in range(2, 64)
    )
    return EXACT if exact else 1e-3


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_latents_are_those_of_the_loop(name: SamplerName, schedule: A1111Schedule) -> None:
    bound = CLOSE if name in SDE else bound_of(name)
    for steps, kind, strength in (
        (8, "epsilon", None),
        (17, "v_prediction", None),
        (20, "v_prediction", None),
        (20, "epsilon", 0.6),
        (30, "v_prediction", 0.33),
    ):
        kind_of: PredictionType = "epsilon" if kind == "epsilon" else "v_prediction"
        assert error(name, schedule, steps, kind_of, strength) <= bound, (steps, kind, strength)


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
@pytest.mark.parametrize("schedule", ["automatic", "karras", "exponential"])
def test_the_heun_form_of_the_2m_sde(schedule: A1111Schedule) -> None:
    assert error("dpmpp-2m-sde", schedule, 20, "epsilon", None, {"solver_type": "heun"}) <= CLOSE


@pytest.mark.parametrize("name", ["ddim", "pndm", "unipc", "euler", "heun", "dpm2", "dpmpp-2m"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_steps(name: SamplerName, kind: PredictionType) -> None:
    for steps in (4, 5, 9, 18, 27, 37, 54):
        assert error(name, "automatic", steps, kind, None) <= bound_of(name), steps
        assert error(name, "automatic", steps, kind, 1.0) <= bound_of(name), steps


@pytest.mark.parametrize(
    ("name", "steps", "strength", "calls"),
    [
        ("euler", 20, None, 20),
        ("euler", 20, 0.6, 13),
        ("euler", 20, 1.0, 20),
        ("heun", 20, 0.6, 25),
        ("ddim", 20, None, 19),
        ("ddim", 20, 0.6, 11),
        ("ddim", 30, None, 30),
        ("pndm", 20, None, 20),
        ("unipc", 20, None, 20),
        ("unipc", 20, 0.6, 12),
        ("unipc", 30, None, 31),
        ("lcm", 4, None, 4),
    ],
)
def test_calls(name: str, steps: int, strength: float | None, calls: int) -> None:
    options = SamplingOptions(steps, strength=strength, a1111="automatic")
    assert len(make_plan(noise_config(), a1111_config(name, "automatic"), options).steps) == calls


def test_facts_of_the_documented_cases() -> None:
    """Numbers measured in AUTOMATIC1111 1.10.1."""

    def plan(name: str, steps: int, strength: float | None = None) -> Any:
        options = SamplingOptions(steps, strength=strength, a1111="automatic")
        return make_plan(noise_config(), a1111_config(name, "automatic"), options)

    assert [step.timestep for step in plan("lcm", 4).steps] == [999, 679, 339, 19]
    assert plan("euler", 20, 0.6).levels[0] == pytest.approx(2.557, abs=1e-3)
    assert plan("dpmpp-2m", 20).init_scale == pytest.approx(0.99767, abs=1e-5)
    levels = plan("dpmpp-2m", 8).levels
    assert (levels[0], levels[-1]) == pytest.approx((14.6146, 0.02917), rel=1e-4)
    assert next(step.timestep for step in plan("pndm", 30).steps) == 991


@pytest.mark.parametrize(
    ("name", "schedule", "steps", "strength", "message"),
    [
        ("deis", "karras", 20, None, "the grid a1111 has no sampler deis: choose one of dpmpp-2m"),
        ("ddim", "karras", 20, None, "ddim has no schedule types in the grid a1111"),
        ("ddim", "automatic", 1, None, "none here: use more steps$"),
        ("pndm", "automatic", 20, 0.05, "none here: use more steps or a higher strength"),
        ("unipc", "automatic", 2, None, "needs at least 3 steps, got 2: use more, or a lower solver_order"),
        ("ddim", "automatic", 1001, None, "use at most 1000"),
    ],
)
def test_refusals(
    name: str, schedule: A1111Schedule, steps: int, strength: float | None, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        make_plan(
            noise_config(),
            a1111_config(name, schedule),
            SamplingOptions(steps, strength=strength, a1111=schedule),
        )
    assert "\n" not in str(refusal.value)


def test_options_are_those_of_a1111() -> None:
    with pytest.raises(RequestError, match="euler with the grid a1111 has no option s_churn: leave it out"):
        a1111_config("euler", "automatic", {"s_churn": 1.0})
    with pytest.raises(RequestError, match="has no option tau: it has solver_order, solver_type"):
        a1111_config("unipc", "automatic", {"tau": 1.0})
    assert a1111_config("unipc", "automatic", {"solver_order": 2}).solver_order == 2
