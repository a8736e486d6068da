from __future__ import annotations

from itertools import pairwise
from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import D, Row, S, make_step, predict
from sd2rt.runtime.samplers.methods.ipndm import ADAMS
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan, Step
from sd2rt.runtime.samplers.timesteps import refuse_eta, refuse_sigmas, start_index, table_indices

_PRK_STEPS = 3
_FEWEST_PRK_STEPS = 4


def pndm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """PNDM's linear multistep method (PLMS), arXiv:2202.09778, started with skip_prk_steps by its own lower orders,
    without it by three Runge-Kutta steps of four calls each (PRK).

    N steps make N + 1 network calls without PRK: the second call looks at the first step's result and takes that
    step again from its start with the mean of the two outputs. One step makes one call. With PRK they are N + 9.

    It is diffusers' method to the letter: strides are total // steps whatever the spacing, and outputs are combined
    as the network gives them, a v-prediction being turned into noise only afterwards, with the current sample and
    noise level.

    A late start enters that list of calls, [t0, t1, t1, t2, ...], at the strength's index, from an
    image at the entry's noise (a is sqrt(a_t), b is sqrt(1 - a_t)), and counts its calls from there. The
    second call takes the first step again as ever, but the list then starts with both entries t1, or has
    none twice: from the third call on the timestep that the network is told, and the update reckons with, is
    one stride below the sample's noise level. Entered at the first t1, the second call also takes the start
    for as noisy as t0; with two calls left the sample ends as noisy as the last timestep. That is diffusers'
    behaviour, followed so that images are equal. A late start with PRK is refused: diffusers there tells the network
    one timestep and reckons with another's noise.

    Not supported: custom timesteps and sigmas, eta, spacings that leave the schedule (see ddim), fewer than 4 steps
    with PRK (diffusers fails there), and strengths that leave no step, for which diffusers' longer list still holds
    one call.
    """
    refuse_sigmas(config, options)
    refuse_eta(config, options)
    if options.timesteps is not None:
        raise RequestError(
            f"pndm takes no custom timesteps, got {len(options.timesteps)}: "
            f"give num_inference_steps, or use ddim"
        )
    total = noise.config.num_train_timesteps
    timesteps = table_indices(noise, config, options)
    stride = total // len(timesteps)
    move = _Move(noise, config)
    if not config.skip_prk_steps:
        steps = _with_runge_kutta(move, timesteps, stride, options)
        return Plan(1.0, tuple(steps))
    visits = [*timesteps[:2], *timesteps[1:]][start_index(total, options) :]

    x, last, second_last, third_last, start = S
    memory: tuple[Row, ...]
    steps = []
    for call, timestep in enumerate(visits):
        if call == 1:
            source, target, sample = timestep + stride, timestep, start
        else:
            source, target, sample = timestep, timestep - stride, x

        if call == 0:
            output, memory = D, (D, 0 * D, 0 * D, x)
        elif call == 1:
            # This output serves the repeated first step alone: the history goes on with the first one.
            output, memory = (D + last) / 2, (last,)
        elif call == 2:
            output, memory = _mean(D, last), (D, last)
        elif call == 3:
            output, memory = _mean(D, last, second_last), (D, last, second_last)
        else:
            output = _mean(D, last, second_last, third_last)
            memory = (D, last, second_last)
        steps.append(move.step(timestep, move(sample, output, source, target), *memory))
    a_start = move.signal[visits[0]]
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)


def _mean(*outputs: Row) -> Row:
    """Adams and Bashforth's mean of the last outputs, the latest first."""
    mean = 0 * D
    for weight, output in zip(ADAMS[len(outputs) - 1], outputs, strict=True):
        mean = mean + weight * output
    return mean


class _Move:
    """DDIM's step from one timestep to another by a given output."""

    def __init__(self, noise: NoiseSchedule, config: SamplerConfig) -> None:
        self._noise = noise
        self.signal: list[float] = noise.alphas_cumprod.tolist()
        self._final = 1.0 if config.set_alpha_to_one else self.signal[0]

    def __call__(self, sample: Row, output: Row, source: int, target: int) -> Row:
        a, a_next = self.signal[source], self.signal[target] if target >= 0 else self._final
        kind = self._noise.config.prediction_type
        x0, eps = predict(kind, sample, output, sqrt(a), sqrt(1 - a))
        moved: Row = sqrt(a_next) * x0 + sqrt(1 - a_next) * eps
        return moved

    def weights(self, source: int, target: int) -> tuple[float, float]:
        """What the step multiplies the sample with, and the output."""
        moved = self(S[0], D, source, target)
        return float(moved[0]), float(moved @ D)

    def step(self, timestep: int, *slots: Row) -> Step:
        return make_step(timestep, self._noise.sigmas[max(timestep, 0)], *slots)


def _with_runge_kutta(move: _Move, timesteps: list[int], stride: int, options: SamplingOptions) -> list[Step]:
    """Three steps of the classical Runge-Kutta method, each of four calls, then the multistep method.

    Five slots are enough: where a step began is not kept, but found again from a probe, which is a combination of it
    and an output that is kept; before the last probe, the whole step is prepared as far as it can be.
    """
    if options.strength is not None:
        raise RequestError("pndm cannot start late with Runge-Kutta steps: set skip_prk_steps")
    if len(timesteps) < _FEWEST_PRK_STEPS:
        raise RequestError(
            f"pndm with Runge-Kutta steps takes at least {_FEWEST_PRK_STEPS} steps, got {len(timesteps)}: ask for "
            "more, or set skip_prk_steps"
        )
    half = stride // 2
    probe, held, *known = S
    steps = []
    for done, (source, target) in enumerate(pairwise(timesteps[: _PRK_STEPS + 1])):
        middle, last = target + half, done == _PRK_STEPS - 1
        # Where a call's probe comes to: keep times where the step began, and push times the output.
        keep, push = move.weights(source, middle)
        first = known[0]
        steps.append(move.step(source, move(probe, D, source, source - half), probe, D, *known[:2]))
        began, sums = held, first / 6 + D / 3
        steps.append(move.step(middle, keep * began + push * D, sums, *known))
        began, sums = (probe - push * 3 * (held - first / 6)) / keep, held + D / 3
        keep, push = move.weights(source, target)
        steps.append(move.step(middle, keep * began + push * D, keep * began + push * sums, *known))
        arrived = held + push * D / 6
        steps.append(move.step(target, arrived, *([] if last else [0 * D]), *known))
    x, last_output, second_last, third_last = S[:4]
    for timestep in timesteps[_PRK_STEPS:]:
        output = _mean(D, last_output, second_last, third_last)
        arrived = move(x, output, timestep, timestep - stride)
        steps.append(move.step(timestep, arrived, D, last_output, second_last))
    return steps
