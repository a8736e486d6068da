"""Compare textual inversion, clip-skip, weights and chunks of prompts with diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from .test_images import NEGATIVE, difference, reference

VECTORS = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "negative_prompt": NEGATIVE}


def encode(pair: Any, ids: list[int], skip: int = 0) -> torch.Tensor:
    """transformers' hidden states [77, D] of start, ids, end and padding, without the last ``skip`` layers."""
    model = pair.reference.text_encoder
    text_model = getattr(model, "text_model", model)
    row = [49406, *ids, 49407, *[0] * (75 - len(ids))]
    with torch.no_grad():
        states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        return text_model.final_layer_norm(states[-1 - skip])[0]  # type: ignore[no-any-return]


@pytest.fixture
def inverted(base: Any) -> Iterator[Any]:
    """Both pipelines with two embeddings, one of them of several vectors."""
    for token, vectors in (("<toy>", VECTORS), ("zork", VECTORS[:1] * 2)):
        base.reference.load_textual_inversion({token: vectors})
        base.pipeline.load_embedding({token: vectors})
    yield base
    base.reference.unload_textual_inversion()
    for token in ("<toy>", "zork"):
        base.pipeline.unload_embedding(token)


@pytest.mark.parametrize(
    "prompt", ["a photo of <toy> on a zork", "zork<toy><toy>, word", "word " * 74 + "<toy>"]
)
@pytest.mark.filterwarnings("ignore:the prompt is longer than 77 tokens")
def test_textual_inversion(inverted: Any, record: Any, prompt: str) -> None:
    expected = reference(inverted, seeds=[2], prompt=prompt, **OPTIONS)
    ours = inverted.pipeline(prompt, seed=2, output_type="np", **OPTIONS).images
    record("Prompts", f"textual inversion, {prompt[:24]!r}", *difference(ours, expected))


def test_textual_inversion_says_something(inverted: Any) -> None:
    one, other = (
        inverted.pipeline(prompt, seed=2, output_type="np", **OPTIONS).images for prompt in ("<toy>", "zork")
    )
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip(base: Any, record: Any, skip: int) -> None:
    """diffusers' clip_skip fails with transformers 5.23, so the reference gets prompt_embeds instead."""
    embeds = encode(base, [320, 2368], skip)  # "a cat"
    expected = reference(base, seeds=[3], prompt_embeds=embeds[None], **OPTIONS)
    ours = base.pipeline("a cat", seed=3, clip_skip=skip, output_type="np", **OPTIONS).images
    record("Prompts", f"clip-skip {skip}", *difference(ours, expected))


def test_weights_and_chunks(base: Any, record: Any) -> None:
    """Two chunks of the prompt, one weighted, beside one of the negative prompt."""
    first, second, empty = encode(base, [320, 1205, 2368]), encode(base, [1929]), encode(base, [])
    factors = torch.ones(77, 1)
    factors[2] = 1.4
    weighted = first * factors
    weighted = weighted * (first.mean() / weighted.mean())
    options: dict[str, Any] = {"num_inference_steps": 4}
    expected = reference(
        base,
        seeds=[4],
        prompt_embeds=torch.cat([weighted, second])[None],
        negative_prompt_embeds=torch.cat([empty, empty])[None],
        **options,
    )
    ours = base.pipeline(
        "a (big:1.4) cat BREAK dog", seed=4, prompt_syntax="a1111", output_type="np", **options
    )
    record("Prompts", "a1111: weights, two chunks", *difference(ours.images, expected))


def test_a_sequence_that_is_there_twice(base: Any) -> None:
    """The UNet's output does not change: padding texts to one length by repetition is exact."""
    unet, text = base.checkpoint.unet(), encode(base, [320, 2368])[None]
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        once, twice = (unet(sample, 500, states).sample for states in (text, torch.cat([text, text], 1)))
    assert float((once - twice).abs().max() / once.abs().max()) < 1e-5
