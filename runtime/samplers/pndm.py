from __future__ import annotations

from math import sqrt

from sd2rt.engines.errors import RequestError
from sd2rt.engines.sampling import SamplerConfig
from sd2rt.runtime.noise_schedule import NoiseSchedule
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.rows import D, Row, S, make_step, predict
from sd2rt.runtime.samplers.timesteps import refuse_eta, refuse_sigmas, start_index, table_indices


def pndm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """PNDM's linear multistep method (PLMS), arXiv:2202.09778, started without Runge-Kutta steps.

    N steps make N + 1 network calls: the second call looks at the first step's result and takes that step
    again from its start with the mean of the two outputs. One step makes one call.

    It is diffusers' method with skip_prk_steps, to the letter: strides are total // steps whatever the
    spacing, and outputs are combined as the network gives them, a v-prediction being turned into noise only
    afterwards, with the current sample and noise level.

    A late start enters that list of N + 1 calls, [t0, t1, t1, t2, ...], at the strength's index, from an
    image at the entry's noise (a is sqrt(a_t), b is sqrt(1 - a_t)), and counts its calls from there. The
    second call takes the first step again as ever, but the list then starts with both entries t1, or has
    none twice: from the third call on the timestep that the network is told, and the update reckons with, is
    one stride below the sample's noise level. Entered at the first t1, the second call also takes the start
    for as noisy as t0; with two calls left the sample ends as noisy as the last timestep. That is diffusers'
    behaviour, followed so that images are equal.

    Not supported: the Runge-Kutta start, custom timesteps and sigmas, eta, spacings that leave the schedule
    (see ddim), and strengths that leave no step, for which diffusers' longer list still holds one call.
    """
    refuse_sigmas(config, options)
    refuse_eta(config, options)
    if options.timesteps is not None:
        raise RequestError(
            f"pndm takes no custom timesteps, got {len(options.timesteps)}: "
            f"give num_inference_steps, or use ddim"
        )
    total = noise.config.num_train_timesteps
    timesteps = table_indices(total, config, options)
    stride = total // len(timesteps)
    visits = [*timesteps[:2], *timesteps[1:]][start_index(total, options) :]

    a = noise.alphas_cumprod.tolist()
    a_final = 1.0 if config.set_alpha_to_one else a[0]
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
            output, memory = (3 * D - last) / 2, (D, last)
        elif call == 3:
            output, memory = (23 * D - 16 * last + 5 * second_last) / 12, (D, last, second_last)
        else:
            output = (55 * D - 59 * last + 37 * second_last - 9 * third_last) / 24
            memory = (D, last, second_last)

        a_t = a[source]
        a_next = a[target] if target >= 0 else a_final
        x0, eps = predict(noise.config.prediction_type, sample, output, sqrt(a_t), sqrt(1 - a_t))
        x_next = sqrt(a_next) * x0 + sqrt(1 - a_next) * eps
        level = sqrt((1 - a[timestep]) / a[timestep])
        steps.append(make_step(timestep, x_next, *memory, level=level))
    a_start = a[visits[0]]
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)
