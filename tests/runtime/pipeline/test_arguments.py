"""Arguments of Python calls that no type checker would pass: each is a request that cannot be honoured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.engines.lora.file import read_lora
from sd2rt.runtime import Pipeline, read_recipe
from sd2rt.runtime.prompts.textual_inversion import load_embedding

ODD: list[Any] = [
    *(
        5,
        -1,
        2.5,
        float("nan"),
        True,
        b"a",
        bytearray(b"a"),
        object(),
        {"a": 1},
        {1, 2},
        [5],
        [None],
        [[]],
        1j,
        "",
    ),
    *(10**400, "a\0b", "\ud800", [b"a"], ["\udfff"], print, np.zeros(3), np.array("a", object)),
]
IDS = [f"{index} {type(value).__name__}" for index, value in enumerate(ODD)]


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as opened:
        yield opened


def assert_refused_or_done(call: Callable[[], Any]) -> None:
    try:
        call()
    except RequestError:
        return


@pytest.mark.parametrize("value", ODD, ids=IDS)
@pytest.mark.parametrize("name", ["bundle", "device", "threads", "max_batch", "tile", "backend", "precision"])
def test_opening(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"bundle": "./nowhere", name: value}
    with pytest.raises((RequestError, BundleError)) as refusal:
        Pipeline.open(**arguments)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("threads", [0, 1025, 2147483648, 2**63, 10**400, "1", 1.0, True])
def test_threads(small_bundle: Path, threads: Any) -> None:
    with pytest.raises(RequestError, match=r"^threads is "):
        Pipeline.open(small_bundle, threads=threads)


@pytest.mark.parametrize("value", ODD, ids=IDS)
@pytest.mark.parametrize(
    "name",
    ["prompt", "negative_prompt", "image", "prompt_embeds", "latents", "guidance_scale", "sampler", "sampler_options",
     "sigmas", "timesteps", "seed", "width", "output_type", "num_images_per_prompt", "guidance_interval", "rng",
     "strength", "preset", "clip_skip", "paste", "unknown", "negative_prompt_embeds", "variation_seed"],
)  # fmt: skip
def test_calls(pipe: Pipeline, name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"prompt": "a", "num_inference_steps": 1, name: value}
    if name == "num_images_per_prompt" and type(value) is int:
        return
    if name == "prompt_embeds":
        del arguments["prompt"]
    assert_refused_or_done(lambda: pipe(**arguments))
    pipe.plan([])


@pytest.mark.parametrize(
    "value",
    [
        *(5, True, "latents", b"latents", ["latents"], object(), {"latents": "x"}, {"latents": None}),
        *({"latents": [1, 2]}, {"latents": object()}, {"latents": 10**400}),
    ],
)
def test_callbacks(pipe: Pipeline, value: Any) -> None:
    with pytest.raises(RequestError, match=r"^(callback_on_step_end|the callback) returned "):
        pipe("a", num_inference_steps=1, callback_on_step_end=lambda *state: value)
    # The run has ended, and others may begin.
    assert len(pipe("a", num_inference_steps=1, callback_on_step_end=lambda *state: {}).images) == 1


@pytest.mark.parametrize("value", ODD, ids=IDS)
def test_files(pipe: Pipeline, value: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: pipe.load_embedding(value),
        lambda: pipe.load_embedding({"x": np.zeros((1, 64), np.float32)}, value),
        lambda: pipe.load_lora(value),
        lambda: pipe.load_lora("x.safetensors", value),
        lambda: pipe.load_lora("x.safetensors", name=value),
        lambda: read_recipe(value),
        lambda: pipe.depth(value),
        lambda: pipe.upscale(value),
        lambda: pipe.unload_lora(value) if value is not None else None,
        lambda: pipe.unload_embedding(value),
    ]
    for call in calls:
        with pytest.raises(RequestError) as refusal:
            call()
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize("token", ["", " ", "\ud800", "a" * 2000, 5, b"a"])
def test_tokens(token: Any) -> None:
    with pytest.raises(RequestError, match="token"):
        load_embedding({"x": np.zeros((1, 64), np.float32)}, token, allow_pickle=False)
    if isinstance(token, str):
        with pytest.raises(RequestError, match="token"):
            load_embedding({token: np.zeros((1, 64), np.float32)}, None, allow_pickle=False)


@pytest.mark.parametrize("scale", [10**400, 1e308, -1e308, float("nan"), "1", True, None, 1j])
def test_scales(scale: Any) -> None:
    with pytest.raises(RequestError, match=r"^the scale of x.safetensors is "):
        read_lora("x.safetensors", scale=scale)
