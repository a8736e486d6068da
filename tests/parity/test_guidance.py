"""Guidance that changes by call, and prompts composed, against diffusers' UNet and scheduler stepped by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sd2rt.export.reference import reference_scheduler
from sd2rt.runtime.denoising.stepper import run_steps
from sd2rt.runtime.denoising.trajectory import Trajectory
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.request.request import make_request
from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.samplers import sampler_config

from .test_images import PROMPT, SAMPLERS, difference

SEED = 3
STEPS = 6
Embeds = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def embeds(base: Any) -> Embeds:
    """Hidden states [77, D] of a few prompts, as diffusers encodes them."""
    encode = base.reference.encode_prompt
    return {
        text: encode(text, "cpu", 1, False)[0][0].detach().numpy()
        for text in (PROMPT, "", "a red fox", "snow")
    }


def scheduler_of(pair: Any, sampler: str) -> Any:
    scheduler = reference_scheduler(pair.checkpoint.noise, sampler_config(sampler, pair.checkpoint.sampler))
    scheduler.set_timesteps(STEPS)
    return scheduler


def levels_of(scheduler: Any) -> list[float]:
    """Noise-to-signal ratio at the timestep of each call."""
    a = scheduler.alphas_cumprod.double().numpy()
    levels = np.sqrt((1 - a) / a)
    return np.interp(scheduler.timesteps.numpy(), np.arange(len(a)), levels).tolist()  # type: ignore[no-any-return]


@torch.no_grad()
def by_hand(pair: Any, sampler: str, calls: list[tuple[TextConditioning, float, float]]) -> NDArray[Any]:
    """Image [1, H, W, 3] in [0, 1] for calls with these texts, scales and rescales; one UNet call for each row."""
    unet, vae, scheduler = pair.reference.unet, pair.reference.vae, scheduler_of(pair, sampler)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))
    latents = latents * scheduler.init_noise_sigma
    for timestep, (texts, scale, rescale) in zip(scheduler.timesteps, calls, strict=True):
        shown = scheduler.scale_model_input(latents, timestep)

        def output(text: NDArray[Any], shown: Any = shown, timestep: Any = timestep) -> Any:
            return unet(shown, timestep, torch.from_numpy(text)[None]).sample

        conds = [output(text) for text in texts.conds]
        if texts.uncond is None:
            (guided,) = conds
        else:
            uncond = output(texts.uncond)
            composed = uncond + sum(
                share * (cond - uncond) for share, cond in zip(texts.shares, conds, strict=True)
            )
            guided = uncond + scale * (composed - uncond)
            guided = rescale * guided * composed.std() / guided.std() + (1 - rescale) * guided
        latents = scheduler.step(guided, timestep, latents).prev_sample
    image = vae.decode(latents / vae.config.scaling_factor).sample
    shown_image: NDArray[Any] = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return shown_image


def from_texts(pair: Any, sampler: str, calls: list[tuple[TextConditioning, float, float]]) -> NDArray[Any]:
    """The image of the same calls by sd2rt's step loop."""
    request = make_request(prompt=PROMPT, sampler=sampler, num_inference_steps=STEPS)
    (picture,) = pair.pipeline.prepare(request, SEED)
    generator = Generator(SEED)
    trajectory = Trajectory(
        plan=picture.trajectories[0].plan,
        latents=generator.randn((4, 8, 8)),
        texts=tuple(texts for texts, _, _ in calls),
        guidance=np.array([numbers for _, *numbers in calls], np.float32),
        generator=generator,
        seed=SEED,
    )
    for _ in run_steps(pair.pipeline.engine("denoiser"), [trajectory], 4):
        pass
    image = pair.pipeline.decode(trajectory.latents)
    unit: NDArray[Any] = np.clip(image / 2 + 0.5, 0, 1)
    return unit.transpose(1, 2, 0)[None]


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_intervals(
    base: Any, record: Any, embeds: Embeds, sampler: str, rescale: float, launched_rows: list[int]
) -> None:
    """Only calls within the interval are guided; the others run one row."""
    interval = (0.4, 4.0)
    levels = levels_of(scheduler_of(base, sampler))
    inside = [interval[0] < level <= interval[1] for level in levels]
    assert 0 < sum(inside) < len(inside)
    assert not inside[0]
    guided, plain = TextConditioning((embeds[PROMPT],), embeds[""]), TextConditioning((embeds[PROMPT],))
    expected = by_hand(base, sampler, [(guided, 7.5, rescale) if now else (plain, 1, 0) for now in inside])
    launched_rows.clear()
    ours = base.pipeline(
        PROMPT,
        seed=SEED,
        sampler=sampler,
        num_inference_steps=STEPS,
        guidance_interval=interval,
        guidance_rescale=rescale,
        output_type="np",
    ).images
    assert launched_rows == [2 if now else 1 for now in inside]
    record("Guidance", f"base, {sampler}, interval, rescale {rescale:g}", *difference(ours, expected))
    always = by_hand(base, sampler, [(guided, 7.5, rescale)] * len(levels))
    assert difference(always, expected)[0] > 2, "an interval that changes nothing proves nothing"


@pytest.mark.parametrize("scales", [(9.0, 3.0), (1.5, 8.0, 4.0), (6.0, -4.0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scales_by_call(
    base: Any, record: Any, embeds: Embeds, sampler: str, scales: tuple[float, ...]
) -> None:
    count = len(scheduler_of(base, sampler).timesteps)
    each = np.interp(np.linspace(0, len(scales) - 1, count), range(len(scales)), scales).tolist()
    guided, plain = TextConditioning((embeds[PROMPT],), embeds[""]), TextConditioning((embeds[PROMPT],))
    calls = [(guided, scale, 0.3) if scale > 1 else (plain, 1, 0) for scale in each]
    expected = by_hand(base, sampler, calls)
    ours = base.pipeline(
        PROMPT,
        seed=SEED,
        sampler=sampler,
        num_inference_steps=STEPS,
        guidance_scale=scales,
        guidance_rescale=0.3,
        output_type="np",
    ).images
    shown = ", ".join(f"{scale:g}" for scale in scales)
    record("Guidance", f"base, {sampler}, scales {shown}", *difference(ours, expected))


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.6, 0.4), (1.0, -0.5), (0.5, 0.3, 0.7)])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
def test_compositions(
    base: Any, record: Any, embeds: Embeds, sampler: str, shares: tuple[float, ...]
) -> None:
    conds = tuple(embeds[text] for text in (PROMPT, "a red fox", "snow")[: len(shares)])
    calls = [(TextConditioning(conds, embeds[""], shares), 5.0, 0.5)] * STEPS
    ours, expected = from_texts(base, sampler, calls), by_hand(base, sampler, calls)
    shown = " AND ".join(f"{share:g}" for share in shares)
    record("Guidance", f"base, {sampler}, {shown}", *difference(ours, expected))
    alone = by_hand(base, sampler, [(TextConditioning(conds[:1], embeds[""]), 5.0, 0.5)] * STEPS)
    assert difference(alone, expected)[0] > 2, "a composition that changes nothing proves nothing"


def test_texts_that_take_turns(base: Any, record: Any, embeds: Embeds) -> None:
    """Prompts that change from call to call, one of them composed: rows are replaced, added and removed."""
    uncond = embeds[""]
    one, other = TextConditioning((embeds["a red fox"],), uncond), TextConditioning((embeds["snow"],), uncond)
    both = TextConditioning((embeds["a red fox"], embeds["snow"]), uncond, (0.5, 0.8))
    calls = [
        (texts, 6.0, 0.0)
        for texts in (one, other, one, both, other, TextConditioning((embeds["snow"],), embeds[PROMPT]))
    ]
    expected = by_hand(base, "ddim", calls)
    record(
        "Guidance", "base, ddim, alternating prompts", *difference(from_texts(base, "ddim", calls), expected)
    )
