from __future__ import annotations

from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.a1111.timestep_lists import walk
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import refuse_sigmas, start_index, table_indices


def ddim(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DDIM, equations 12 and 16 of arXiv:2010.02502; with eta = 1 it adds as much noise as DDPM.

    As in diffusers, a step goes down by a whole stride, total // steps, which may differ from the next timestep. With
    custom timesteps or a rule for levels, it goes to the next timestep. A step below timestep 0 ends at a clean image
    with set_alpha_to_one, otherwise at the noise level of timestep 0.

    With a strength, it starts later in the list, from a noised image with a = sqrt(a_t), b = sqrt(1 - a_t).

    Not supported: custom sigmas, clipping or thresholding of x_0, and spacings that leave the schedule (leading with
    an offset and as many steps as timesteps; trailing if rounding adds a timestep -1, which diffusers' tables read as
    pure noise).
    """
    refuse_sigmas(config, options)
    total = noise.config.num_train_timesteps
    if options.a1111 is not None:
        visited = walk(config.name, noise, options)
        timesteps, targets, entry = visited.timesteps, visited.targets, visited.entry
    else:
        timesteps = table_indices(noise, config, options)
        if options.num_inference_steps is None or config.levels != "spaced":
            targets = [*timesteps[1:], -1]
        else:
            stride = total // options.num_inference_steps
            targets = [timestep - stride for timestep in timesteps]
        start = start_index(total, options)
        timesteps, targets = timesteps[start:], targets[start:]
        entry = timesteps[0]

    a = noise.alphas_cumprod.tolist()
    a_final = 1.0 if config.set_alpha_to_one else a[0]
    x = S[0]
    steps = []
    for timestep, target in zip(timesteps, targets, strict=True):
        a_t = a[timestep]
        a_next = a[target] if target >= 0 else a_final
        x0, eps = predict(noise.config.prediction_type, x, D, sqrt(a_t), sqrt(1 - a_t))
        variance = options.eta**2 * (1 - a_next) / (1 - a_t) * (1 - a_t / a_next)
        # Exactly zero if eta is 1 and the target is clean; rounding must not make it negative.
        direction = sqrt(max(0.0, 1 - a_next - variance)) * eps
        x_next = sqrt(a_next) * x0 + direction + sqrt(variance) * NOISE
        steps.append(make_step(timestep, noise.sigmas[timestep], x_next, draws_noise=options.eta > 0))
    a_start = a[entry]
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)
