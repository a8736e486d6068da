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
    """SA-Solver, arXiv:2309.05019: Adams steps on an SDE with amount of noise tau, for x_0 or the noise. The
    predictor uses solver_order outputs, the corrector corrector_order.

    Without noise (tau 0), the order of convergence is the corrector's; with noise it is at most 2 (weak).

    tau applies from timestep tau_start to tau_end. Outside, the ODE is solved, but noise is still drawn. S_1 is the
    part of the next correction that is known before the call, including its noise; S_2 and S_3 are the last
    predictions, the latest first. The orders grow with their number and, with lower_order_final, decrease towards the
    end. The last step ends at the schedule's lowest level; with a rule for levels it does nothing, because diffusers
    repeats the last level.

    With a strength, it starts later in the list, from an image noised to that timestep. As in diffusers, with a rule
    for levels this differs slightly from the level of the first step.

    Not supported: other functions of the timestep for tau, flow levels, eta, a last step to noise level 0, repeated
    levels.
    """
    lowest = config.model_copy(update={"final_sigmas_type": "sigma_min"})
    grid = variance_preserving(noise, lowest, options, repeat_last=True)
    if grid.levels[-1] == 0:
        raise RequestError(
            "sa-solver cannot step to noise level 0: end the sigmas above 0, or use dpmpp-2m-sde"
        )
    signal, count = Signal(grid.levels), grid.count
    x, prepared, *history = S[:4]
    max_history = max(config.solver_order, config.corrector_order - 1)
    steps = []
    corrector_weight: float | None = None  # of the current prediction
    for i in range(grid.start, count):
        done = i - grid.start
        x0, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        predictions = [x0 if config.predict_x0 else eps, *history]
        sample = x
        if corrector_weight is not None:
            sample = prepared + corrector_weight * predictions[0]
        order, corrector = config.solver_order, config.corrector_order
        if config.lower_order_final:
            order, corrector = min(order, count - i), min(corrector, count - i + 1)
        order = min(order, min(done, max_history) + 1)
        corrector = min(corrector, min(done, max_history) + 2)

        tau = _tau(config, grid.timesteps[i])
        scaled = _scale_and_add_noise(config, signal, i, tau, sample)
        x_next = scaled
        for weight, value in zip(_adams(config, signal, i, i + 1, tau, i, order), predictions, strict=False):
            x_next = x_next + weight * value
        base: Row = 0 * x
        if i + 1 < count:
            base = scaled
            corrector_weight, *weights = _adams(config, signal, i, i + 1, tau, i + 1, corrector)
            for weight, value in zip(weights, predictions, strict=False):
                base = base + weight * value
        history_size = min(max_history - 1, done + 1)
        slots = (x_next, base, *predictions[:history_size])
        steps.append(make_step(grid.timesteps[i], grid.levels[i], *slots, draws_noise=True))
    a_start = noise.alphas_cumprod[int(grid.timesteps[grid.start])].item()
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)


def _tau(config: SamplerConfig, timestep: float) -> float:
    return config.tau if config.tau_start <= timestep <= config.tau_end else 0.0


def _scale_and_add_noise(config: SamplerConfig, signal: Signal, s: int, tau: float, sample: Row) -> Row:
    """Compute the terms of the sample and of fresh noise in the step from level s."""
    h = signal.lambdas[s + 1] - signal.lambdas[s]
    if config.predict_x0:
        scale = exp(-(tau**2) * h) * signal.sigma[s + 1] / signal.sigma[s]
        noise = signal.sigma[s + 1] * sqrt(-expm1(-2 * tau**2 * h))
    else:
        scale = signal.alpha[s + 1] / signal.alpha[s]
        noise = tau * signal.sigma[s + 1] * sqrt(expm1(2 * h))
    return scale * sample + noise * NOISE if noise else scale * sample


def _adams(
    config: SamplerConfig, signal: Signal, s: int, t: int, tau: float, latest: int, order: int
) -> list[float]:
    """Weights, in the step from level s to t, of the predictions at the last ``order`` levels up to ``latest``:
    integrals of the exponential times their Lagrange polynomials.

    For x_0, the second-order weights contain diffusers' additional term, which is of third order in the step.
    """
    lambdas = signal.lambdas
    nodes = [lambdas[latest - k] for k in range(order)]
    h, rate = lambdas[t] - lambdas[s], 1 + tau**2
    if len(set(nodes)) < order:
        raise RequestError(
            f"{config.name} repeats a noise level in {len(lambdas) - 1} steps: use fewer steps or "
            "another schedule"
        )
    if config.predict_x0:
        # The integral of e**(rate (u - lambda_t)) over u, times its factor in the paper's equation 14.
        scale, exponent = rate * signal.sigma[t] * exp(lambdas[t]), rate
        weights = _lagrange_integrals(nodes, lambdas[s], lambdas[t], exponent)
        if order == 2:
            integral = (rate * h + expm1(-rate * h)) / rate**2
            distance = lambdas[s] - lambdas[s - 1] if latest == s else h
            extra = (h**2 / 2 - integral) / distance
            weights = [weights[0] + extra, weights[1] - extra]
    else:
        # The integral of e**-u over u is e**-lambda_t times that of e**-(u - lambda_t).
        scale, exponent = -rate * signal.alpha[t] * exp(-lambdas[t]), -1.0
        weights = _lagrange_integrals(nodes, lambdas[s], lambdas[t], exponent)
    return [scale * weight for weight in weights]


def _lagrange_integrals(nodes: list[float], start: float, end: float, rate: float) -> list[float]:
    """Integrals from start to end of e**(rate (u - end)) times the Lagrange polynomial of each node."""
    h = end - start
    # Moments of w = u - end, integrated by parts.
    moments = [-expm1(-rate * h) / rate]
    for k in range(1, len(nodes)):
        moments.append((-((-h) ** k) * exp(-rate * h) - k * moments[-1]) / rate)
    return weights_of([node - end for node in nodes], moments)
