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
_MIN_PRK_STEPS = 4


def pndm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """PNDM's linear multistep method (PLMS), arXiv:2202.09778. It starts with its own lower orders if skip_prk_steps
    is set, otherwise with three Runge-Kutta steps of four calls each (PRK).

    Without PRK, N steps make N + 1 network calls: the second call evaluates the result of the first step, and the
    first step is repeated with the mean of the two outputs. A single step makes one call. With PRK, N steps make
    N + 9 calls.

    The method is exactly diffusers': strides are total // steps for every spacing, and the network's outputs are
    combined first. A v-prediction is converted to noise afterwards, with the current sample and noise level.

    With a strength, it enters the list of calls [t0, t1, t1, t2, ...] later, from a noised image with
    a = sqrt(a_t), b = sqrt(1 - a_t). The second call always repeats the first step, although the list now starts
    with both t1, or after them. From the third call on, the timestep used for the network and the update is therefore
    one stride below the sample's noise level. If the list starts with both t1, the second call also treats the start
    as noisy as t0; if two calls remain, the result is as noisy as the last timestep. This is diffusers' behaviour,
    reproduced so that images are equal. PRK cannot be combined with a strength: diffusers then passes one timestep to
    the network and uses the noise level of another.

    Not supported: custom timesteps and sigmas; eta; spacings that leave the schedule (see ddim); fewer than 4 steps
    with PRK, where diffusers fails; and strengths that leave no step, where diffusers' list still has one call.
    """
    refuse_sigmas(config, options)
    refuse_eta(config, options)
    if options.timesteps is not None:
        raise RequestError(
            "pndm does not support custom timesteps: use num_inference_steps, or the sampler ddim"
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
            # This output is used only to repeat the first step; the history keeps the first output.
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
    """Adams-Bashforth mean of the last outputs, the latest first."""
    mean = 0 * D
    for weight, output in zip(ADAMS[len(outputs) - 1], outputs, strict=True):
        mean = mean + weight * output
    return mean


class _Move:
    """DDIM step between two timesteps for any combination of outputs."""

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
        """Return the step's factors of the sample and of the output."""
        moved = self(S[0], D, source, target)
        return float(moved[0]), float(moved @ D)

    def step(self, timestep: int, *slots: Row) -> Step:
        return make_step(timestep, self._noise.sigmas[max(timestep, 0)], *slots)


def _with_runge_kutta(move: _Move, timesteps: list[int], stride: int, options: SamplingOptions) -> list[Step]:
    """Make three steps of the classical Runge-Kutta method, of four calls each, then multistep steps.

    To fit into five slots, the sample at the start of a step is not stored. It is recovered from an intermediate
    sample, a combination of it and a stored output. Before the last call of a step, its result is prepared except for
    that call's output.
    """
    if options.strength is not None:
        raise RequestError("pndm with Runge-Kutta steps does not support a strength: set skip_prk_steps")
    if len(timesteps) < _MIN_PRK_STEPS:
        raise RequestError(
            f"pndm with Runge-Kutta steps needs at least {_MIN_PRK_STEPS} steps, got {len(timesteps)}: use "
            "more, or set skip_prk_steps"
        )
    half = stride // 2
    x, stored, *outputs = S
    steps = []
    for index, (source, target) in enumerate(pairwise(timesteps[: _PRK_STEPS + 1])):
        middle, last = target + half, index == _PRK_STEPS - 1
        # A move multiplies the sample at the start of the step by keep, and the output by push.
        keep, push = move.weights(source, middle)
        first = outputs[0]
        steps.append(move.step(source, move(x, D, source, source - half), x, D, *outputs[:2]))
        step_start, weighted_sum = stored, first / 6 + D / 3
        steps.append(move.step(middle, keep * step_start + push * D, weighted_sum, *outputs))
        step_start, weighted_sum = (x - push * 3 * (stored - first / 6)) / keep, stored + D / 3
        keep, push = move.weights(source, target)
        prepared = keep * step_start + push * weighted_sum
        steps.append(move.step(middle, keep * step_start + push * D, prepared, *outputs))
        x_next = stored + push * D / 6
        steps.append(move.step(target, x_next, *([] if last else [0 * D]), *outputs))
    x, last_output, second_last, third_last = S[:4]
    for timestep in timesteps[_PRK_STEPS:]:
        output = _mean(D, last_output, second_last, third_last)
        x_next = move(x, output, timestep, timestep - stride)
        steps.append(move.step(timestep, x_next, D, last_output, second_last))
    return steps
