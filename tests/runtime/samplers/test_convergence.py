"""Orders of convergence, measured on a problem with an exact solution."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.sampler_config import PredictionType, SamplerName, default_sampler
from sd2rt.runtime.samplers import SamplingOptions, make_plan
from sd2rt.runtime.samplers.plan import Plan

from .cases import PREDICTIONS, TWO_CALLS, noise_config
from .gaussian import Gaussian, error

COUNTS = (96, 192)
DENSE = 192_000
"""Training timesteps: so many that rounding to whole timesteps is negligible."""

Case = tuple[SamplerName, dict[str, Any], float]
OPEN_END = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
ALWAYS = {"tau": 1.0, "tau_start": 0.0, "tau_end": 1000.0}

ODE: list[Case] = [
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpm2", {}, 2),
    ("dpm-fast", {}, 3),
    *(("lms", {"solver_order": order}, order) for order in (1, 2, 3, 4)),
    *(
        (
            "dpmpp-2m",
            {"solver_order": order, "solver_type": kind, "algorithm_type": algorithm, **OPEN_END},
            order,
        )
        for order in (1, 2)
        for kind in ("midpoint", "heun")
        for algorithm in ("dpmsolver++", "dpmsolver")
    ),
    *(
        (
            "dpmpp-2s",
            {"solver_order": order, "solver_type": kind, "algorithm_type": algorithm, **OPEN_END},
            order,
        )
        for order in (1, 2, 3)
        for kind in ("midpoint", "heun")
        for algorithm in ("dpmsolver++", "dpmsolver")
    ),
    *(("deis", {"solver_order": order, "lower_order_final": False}, order) for order in (1, 2, 3)),
    *(
        ("unipc", {"solver_order": order, "solver_type": kind, "predict_x0": clean, **OPEN_END}, order + 1)
        for order in (1, 2)
        for kind in ("bh1", "bh2")
        for clean in (True, False)
    ),
    *(("unipc", {"solver_order": 3, "solver_type": kind, **OPEN_END}, 4) for kind in ("bh1", "bh2")),
    *(
        ("unipc", {"solver_order": order, "disable_corrector": tuple(range(max(COUNTS))), **OPEN_END}, order)
        for order in (1, 2, 3)
    ),
    ("ipndm", {"solver_order": 1, "final_sigmas_type": "sigma_min"}, 1),
    ("ipndm", {"solver_order": 2, "final_sigmas_type": "sigma_min"}, 2),
    *(
        (
            "sa-solver",
            {"solver_order": order, "corrector_order": corrector, "tau": 0.0, "lower_order_final": False},
            corrector,
        )
        for order, corrector in ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3))
    ),
]
"""Without fresh noise: strong errors. UniPC's corrector adds one order; SA-Solver keeps the corrector's result, so
its order is the corrector's, which uses at most one output more than the predictor."""

SDE: list[Case] = [
    ("euler-a", {}, 1),
    ("dpm2-a", {}, 2),
    ("dpmpp-sde", {}, 2),
    ("dpmpp-2s-a", {}, 2),
    ("restart", {}, 2),
    ("dpmpp-3m-sde", {}, 2),
    *(
        ("dpmpp-2m-sde", {"solver_order": 2, "solver_type": kind, "algorithm_type": algorithm, **OPEN_END}, 2)
        for kind in ("midpoint", "heun")
        for algorithm in ("sde-dpmsolver++", "sde-dpmsolver")
    ),
    ("dpmpp-2m-sde", {"solver_order": 1, **OPEN_END}, 1),
    ("dpmpp-2s", {"solver_order": 1, "algorithm_type": "sde-dpmsolver++", **OPEN_END}, 1),
    ("sa-solver", {"solver_order": 1, "corrector_order": 1, "lower_order_final": False, **ALWAYS}, 1),
    ("sa-solver", {"solver_order": 2, "corrector_order": 2, "lower_order_final": False, **ALWAYS}, 2),
    ("sa-solver", {"solver_order": 3, "corrector_order": 3, "lower_order_final": False, **ALWAYS}, 2),
]
"""With fresh noise: errors of mean and standard deviation, on this linear problem."""


def graded(steps: int) -> tuple[float, ...]:
    """Levels with tiny first steps.

    The first step of a multistep method is of first order. Its error, of the square of its length, would hide the
    higher order of all others.
    """
    return tuple(np.exp(np.interp(np.linspace(0, 1, steps + 1) ** 2, [0, 1], [log(8.0), log(0.15)])).tolist())


def even(steps: int) -> tuple[float, ...]:
    return tuple(np.linspace(8.0, 0.15, steps + 1).tolist())


def slope(errors: dict[int, float]) -> float:
    (few, more), (at_few, at_more) = errors.keys(), errors.values()
    return log(at_few / at_more) / log(more / few)


def measured(
    name: SamplerName,
    options: dict[str, Any],
    kind: PredictionType = "epsilon",
    levels: Callable[[int], tuple[float, ...]] = graded,
) -> float:
    """Measure a sampler's order of convergence."""
    # A single-step method is measured at the end of one of its groups.
    rest = 3 if name == "dpm-fast" else int(options.get("solver_order", 1)) if name == "dpmpp-2s" else 1
    errors = {}
    for steps in COUNTS:
        sigmas = SamplingOptions(sigmas=levels(steps))
        plan = make_plan(noise_config(kind), default_sampler(name, **options), sigmas)
        calls = (steps - rest) * (2 if name in TWO_CALLS else 1)
        errors[steps] = error(plan, Gaussian(), kind, calls)
    return slope(errors)


def measured_in_timesteps(name: SamplerName, **options: Any) -> float:
    """Measure the order of a sampler with whole timesteps, over three quarters of a dense schedule."""
    noise = noise_config(num_train_timesteps=DENSE, beta_start=0.85 / DENSE, beta_end=12.0 / DENSE)
    errors = {}
    for steps in COUNTS:
        plan: Plan = make_plan(
            noise, default_sampler(name, spacing="leading", **options), SamplingOptions(steps)
        )
        calls = next(i for i, step in enumerate(plan.steps) if step.timestep <= DENSE // 4 + 1)
        errors[steps] = error(plan, Gaussian(), "epsilon", calls)
    return slope(errors)


def named(value: object) -> str:
    return " ".join(f"{each}" for each in value.values())[:60] if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("name", "options", "order"), [*ODE, *SDE], ids=named)
def test_a_method_of_order_k_shows_order_k(name: SamplerName, options: dict[str, Any], order: float) -> None:
    assert order - 0.3 <= measured(name, options) <= order + 0.7


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", ["euler", "dpm2", "dpmpp-2m", "deis", "unipc"])
def test_the_order_is_that_of_every_prediction(name: SamplerName, kind: PredictionType) -> None:
    ends: dict[str, dict[str, Any]] = {
        "dpmpp-2m": OPEN_END,
        "unipc": OPEN_END,
        "deis": {"lower_order_final": False},
    }
    options = ends.get(name, {})
    order = {"euler": 1, "unipc": 3}.get(name, 2)
    assert order - 0.3 <= measured(name, options, kind) <= order + 0.7


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("ddpm", 1), ("pndm", 2)])
def test_methods_in_whole_timesteps(name: SamplerName, order: int) -> None:
    """PLMS is of order 2, not 4: its weights assume equal steps, timesteps are not equally spaced in sigma, and its
    first step is of order 2."""
    assert abs(measured_in_timesteps(name) - order) < 0.3


def test_ddim_with_noise_is_of_weak_order_1() -> None:
    noise = noise_config(num_train_timesteps=DENSE, beta_start=0.85 / DENSE, beta_end=12.0 / DENSE)
    errors = {}
    for steps in COUNTS:
        plan = make_plan(noise, default_sampler("ddim"), SamplingOptions(steps, eta=1.0))
        errors[steps] = error(plan, Gaussian(), "epsilon", steps - steps // 4 - 1)
    assert abs(slope(errors) - 1) < 0.3


@pytest.mark.parametrize("order", [3, 4])
def test_ipndm_is_of_order_2_but_on_equal_steps(order: int) -> None:
    """Its weights assume equal steps in sigma. With such levels its order is higher, until the error of its first
    step, of first order, dominates."""
    options = {"solver_order": order, "final_sigmas_type": "sigma_min"}
    assert abs(measured("ipndm", options) - 2) < 0.3
    assert measured("ipndm", {**options, "solver_order": 3}, levels=even) > 2.7


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_the_third_order_of_dpmpp_2m_is_of_order_2(algorithm: str) -> None:
    """The formula of the authors and diffusers gives the second difference half the weight of its integral: the
    error has a smaller constant than second order, but the same order."""
    options = {"algorithm_type": algorithm, "solver_type": "heun", **OPEN_END}
    assert abs(measured("dpmpp-2m", {"solver_order": 3, **options}) - 2) < 0.5


def test_sde_forms_of_higher_order_are_of_weak_order_1() -> None:
    """dpmpp-2m-sde's third order has a wrong sign in diffusers. dpmpp-2s draws fresh noise for each call, even for
    calls with the same starting sample."""
    assert abs(measured("dpmpp-2m-sde", {"solver_order": 3, **OPEN_END}) - 1) < 0.3
    for order in (2, 3):
        sde = {"solver_order": order, "algorithm_type": "sde-dpmsolver++", **OPEN_END}
        assert abs(measured("dpmpp-2s", sde) - 1) < 0.3
