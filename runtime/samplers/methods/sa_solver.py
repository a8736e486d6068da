from __future__ import annotations

from math import exp, expm1, sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import NOISE, D, Row, S, make_step, predict
from sd2rt.runtime.samplers.alpha_sigma import Signal
from sd2rt.runtime.samplers.grid import variance_preserving
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.quadrature import weights_of


def sa_solver(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """SA-Solver, arXiv:2309.05019: Adams steps on the SDE whose share of noise is tau, predicted with solver_order
    outputs and corrected with corrector_order, on x_0 or on the noise.

    The order is that of the corrector where tau is 0; with noise it is at most 2 (weakly).

    tau counts from timestep tau_start to tau_end; outside of it the ODE is followed, and a draw is made all the
    same. S_1 is all that the correction needs of the past, its noise included, made when it was at hand; S_2 and
    S_3 are what was predicted, the latest first. The orders grow with them, and with lower_order_final fall again
    towards the end. The last step ends at the schedule's lowest level, or, where levels follow another rule, goes
    nowhere: diffusers repeats their last one.

    A late start is the rest of the list, from an image at the noise of its first timestep: where levels follow
    another rule that is not quite the level of the first step, in diffusers neither.

    Not supported: other functions of the timestep for tau, flow levels, eta, a last step to no noise, levels
    visited twice.
    """
    lowest = config.model_copy(update={"final_sigmas_type": "sigma_min"})
    grid = variance_preserving(noise, lowest, options, repeat_last=True)
    if grid.levels[-1] == 0:
        raise RequestError(
            "sa-solver cannot step to no noise: let the sigmas end above 0, or use dpmpp-2m-sde"
        )
    signal, count = Signal(grid.levels), grid.count
    x, prepared, *remembered = S[:4]
    most = max(config.solver_order, config.corrector_order - 1)
    steps = []
    now: float | None = None  # the weight in the correction of what is predicted now
    for i in range(grid.start, count):
        done = i - grid.start
        x0, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        known = [x0 if config.predict_x0 else eps, *remembered]
        sample = x
        if now is not None:
            sample = prepared + now * known[0]
        order, corrector = config.solver_order, config.corrector_order
        if config.lower_order_final:
            order, corrector = min(order, count - i), min(corrector, count - i + 1)
        order, corrector = min(order, min(done, most) + 1), min(corrector, min(done, most) + 2)

        tau = _tau(config, grid.timesteps[i])
        moved = _moved(config, signal, i, tau, sample)
        x_next = moved
        for weight, value in zip(_adams(config, signal, i, i + 1, tau, i, order), known, strict=False):
            x_next = x_next + weight * value
        base: Row = 0 * x
        if i + 1 < count:
            base = moved
            now, *weights = _adams(config, signal, i, i + 1, tau, i + 1, corrector)
            for weight, value in zip(weights, known, strict=False):
                base = base + weight * value
        kept = min(most - 1, done + 1)
        steps.append(
            make_step(grid.timesteps[i], grid.levels[i], x_next, base, *known[:kept], draws_noise=True)
        )
    a_start = noise.alphas_cumprod[int(grid.timesteps[grid.start])].item()
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)


def _tau(config: SamplerConfig, timestep: float) -> float:
    return config.tau if config.tau_start <= timestep <= config.tau_end else 0.0


def _moved(config: SamplerConfig, signal: Signal, s: int, tau: float, sample: Row) -> Row:
    """What the step from level s leaves of the sample, with its fresh noise."""
    h = signal.lambdas[s + 1] - signal.lambdas[s]
    if config.predict_x0:
        keep = exp(-(tau**2) * h) * signal.sigma[s + 1] / signal.sigma[s]
        fresh = signal.sigma[s + 1] * sqrt(-expm1(-2 * tau**2 * h))
    else:
        keep = signal.alpha[s + 1] / signal.alpha[s]
        fresh = tau * signal.sigma[s + 1] * sqrt(expm1(2 * h))
    return keep * sample + fresh * NOISE if fresh else keep * sample


def _adams(
    config: SamplerConfig, signal: Signal, s: int, t: int, tau: float, latest: int, order: int
) -> list[float]:
    """Over the step from level s to t, the weights of what was predicted at the last ``order`` levels up to
    ``latest``: the exponential's integrals of their Lagrange polynomials.

    The second-order weights on x_0 have diffusers' further term, which is of third order in the step.
    """
    lambdas = signal.lambdas
    places = [lambdas[latest - k] for k in range(order)]
    h, rate = lambdas[t] - lambdas[s], 1 + tau**2
    if len(set(places)) < order:
        raise RequestError(
            f"{config.name} visits one noise level twice in {len(lambdas) - 1} steps: ask for fewer steps or "
            "another schedule"
        )
    if config.predict_x0:
        # Of e**(rate (u - lambda_t)) over u, times what stands before it in the paper's equation 14.
        scale, exponent = rate * signal.sigma[t] * exp(lambdas[t]), rate
        weights = _lagrange_integrals(places, lambdas[s], lambdas[t], exponent)
        if order == 2:
            bend = (rate * h + expm1(-rate * h)) / rate**2
            other = lambdas[s] - lambdas[s - 1] if latest == s else h
            extra = (h**2 / 2 - bend) / other
            weights = [weights[0] + extra, weights[1] - extra]
    else:
        # Of e**-u over u, which is e**-lambda_t times that of e**-(u - lambda_t).
        scale, exponent = -rate * signal.alpha[t] * exp(-lambdas[t]), -1.0
        weights = _lagrange_integrals(places, lambdas[s], lambdas[t], exponent)
    return [scale * weight for weight in weights]


def _lagrange_integrals(places: list[float], start: float, end: float, rate: float) -> list[float]:
    """From start to end, the integrals of e**(rate (u - end)) times the polynomials that are 1 at one of the places,
    0 at the others."""
    h = end - start
    # Moments of w = u - end, by parts.
    moments = [-expm1(-rate * h) / rate]
    for k in range(1, len(places)):
        moments.append((-((-h) ** k) * exp(-rate * h) - k * moments[-1]) / rate)
    return weights_of([place - end for place in places], moments)
