"""The pipeline's batches, runs, callbacks, seeds and errors; tests/parity compares its images with diffusers'."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime import Pipeline, Request

PROMPT = "a lighthouse on a cliff"


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def v_pipe(small_v_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_v_bundle) as pipeline:
        yield pipeline


def mixed_requests() -> list[Request[Any]]:
    common: dict[str, Any] = {"output_type": "np"}
    return [
        Request(prompt="a red fox", seed=1, sampler="ddim", num_inference_steps=3, eta=0.7, **common),
        Request(
            prompt="two tigers", seed=2, sampler="pndm", num_inference_steps=5, guidance_scale=1.0, **common
        ),
        Request(prompt="", seed=3, sampler="euler", num_inference_steps=7, guidance_rescale=0.7, **common),
        Request(
            prompt="snow",
            negative_prompt="rain",
            seed=4,
            sampler="dpmpp-2m",
            num_inference_steps=4,
            guidance_scale=3.0,
            num_images_per_prompt=2,
            **common,
        ),
        Request(prompt="a wide view", seed=5, width=128, num_inference_steps=2, **common),
    ]


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8])
def test_mixed_batch_is_each_request_alone(small_bundle: Path, pipe: Pipeline, max_batch: int) -> None:
    """Different prompts, seeds, samplers, steps, guidance and sizes in one call, in batches of any size."""
    requests = mixed_requests()
    alone = [pipe.generate([request])[0] for request in requests]
    with Pipeline.open(small_bundle, max_batch=max_batch) as batched:
        together = batched.generate(requests)
    for one, other in zip(alone, together, strict=True):
        assert one.seeds == other.seeds
        np.testing.assert_allclose(one.images, other.images, atol=2e-5)


def test_image_i_of_a_call_is_seed_plus_i(pipe: Pipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
    several = pipe([PROMPT, "fog"], seed=40, num_images_per_prompt=2, **options)
    assert several.seeds == [40, 41, 42, 43]
    for prompt, index in ((PROMPT, 1), ("fog", 2), ("fog", 3)):
        alone = pipe(prompt, seed=40 + index, **options).images[0]
        np.testing.assert_allclose(several.images[index], alone, atol=2e-5)


def test_seed_is_chosen_and_told_where_none_is_given(pipe: Pipeline) -> None:
    first, second = (pipe(PROMPT, num_inference_steps=1, output_type="latent") for _ in range(2))
    assert first.seeds != second.seeds
    again = pipe(PROMPT, num_inference_steps=1, output_type="latent", seed=first.seeds[0])
    np.testing.assert_array_equal(again.images, first.images)


def test_seed_zero_and_guidance_zero_are_values(pipe: Pipeline) -> None:
    output = pipe(PROMPT, seed=0, guidance_scale=0.0, num_inference_steps=1, output_type="latent")
    assert output.seeds == [0]
    unguided = pipe(PROMPT, seed=0, guidance_scale=1.0, num_inference_steps=1, output_type="latent")
    np.testing.assert_array_equal(output.images, unguided.images)


def test_stream_tells_every_step(pipe: Pipeline) -> None:
    with pipe.stream(PROMPT, seed=1, sampler="ddim", num_inference_steps=4) as run:
        assert run.total == 4
        seen = [(p.step, p.steps, p.timestep, p.done) for p in run]
        images = run.result()[0].images
    assert seen == [(1, 4, 751.0, 1), (2, 4, 501.0, 2), (3, 4, 251.0, 3), (4, 4, 1.0, 4)]
    direct = pipe(PROMPT, seed=1, sampler="ddim", num_inference_steps=4).images
    np.testing.assert_array_equal(np.asarray(images[0]), np.asarray(direct[0]))


def test_pndm_makes_one_call_more(pipe: Pipeline) -> None:
    with pipe.stream(PROMPT, sampler="pndm", num_inference_steps=4) as run:
        assert run.total == 5


def test_stop_decodes_what_there_is(pipe: Pipeline) -> None:
    options: dict[str, Any] = {
        "seed": 1,
        "sampler": "euler",
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    with pipe.stream(PROMPT, **options) as run:
        for progress in run:
            if progress.step == 3:
                latents = progress.latents()
                break
        stopped = run.stop()[0].images
    np.testing.assert_array_equal(stopped, latents)
    whole = pipe(PROMPT, **options).images
    assert np.abs(whole - stopped).max() > 0.01


def test_leaving_a_run_frees_the_pipeline(pipe: Pipeline) -> None:
    with pipe.stream(PROMPT, num_inference_steps=5) as run:
        next(iter(run))
    assert pipe(PROMPT, num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)
    with pytest.raises(RequestError, match="closed"):
        run.result()


def test_a_call_within_a_run(pipe: Pipeline) -> None:
    options: Any = {"num_inference_steps": 3, "output_type": "latent"}
    alone, other = pipe(PROMPT, seed=1, **options).images, pipe("b", seed=2, **options).images
    with pipe.stream(PROMPT, seed=1, **options) as run:
        next(iter(run))
        np.testing.assert_array_equal(pipe("b", seed=2, **options).images, other)
        [output] = run.result()
    np.testing.assert_array_equal(output.images, alone)


def test_threads_wait_for_each_other(pipe: Pipeline) -> None:
    results: dict[int, Any] = {}

    def make(seed: int) -> None:
        results[seed] = pipe(PROMPT, seed=seed, num_inference_steps=3, output_type="latent").images

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        alone = pipe(PROMPT, seed=seed, num_inference_steps=3, output_type="latent").images
        np.testing.assert_array_equal(results[seed], alone)


def test_callback_sees_and_changes_latents(pipe: Pipeline) -> None:
    seen = []

    def zero_at_the_end(
        pipeline: Pipeline, step: int, timestep: float, state: dict[str, Any]
    ) -> dict[str, Any]:
        assert pipeline is pipe
        seen.append((step, timestep))
        return {"latents": np.zeros_like(state["latents"]) if step == 2 else state["latents"]}

    options: dict[str, Any] = {
        "seed": 1,
        "sampler": "ddim",
        "num_inference_steps": 3,
        "output_type": "latent",
    }
    output = pipe(PROMPT, callback_on_step_end=zero_at_the_end, **options)
    assert seen == [(0, 667.0), (1, 334.0), (2, 1.0)]
    assert not output.images.any()
    unchanged = pipe(PROMPT, callback_on_step_end=lambda *arguments: None, **options).images
    np.testing.assert_array_equal(unchanged, pipe(PROMPT, **options).images)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_an_error_that_names_the_step(pipe: Pipeline, bad: float) -> None:
    def spoil(pipeline: Pipeline, step: int, timestep: float, state: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            state["latents"][0, 0, 0, 0] = bad
        return state

    with pytest.raises(EngineError, match=r"not finite after step 3 of 5 \(timestep 401\)"):
        pipe(PROMPT, sampler="ddim", num_inference_steps=5, callback_on_step_end=spoil)
    # The pipeline still works.
    assert pipe(PROMPT, num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)


def test_not_finite_after_the_last_step_is_no_black_image(pipe: Pipeline) -> None:
    def spoil(pipeline: Pipeline, step: int, timestep: float, state: dict[str, Any]) -> dict[str, Any]:
        return {"latents": state["latents"] * np.nan}

    with pytest.raises(EngineError, match="not finite"):
        pipe(PROMPT, sampler="ddim", num_inference_steps=1, callback_on_step_end=spoil)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 100}, "width 100 is not a multiple of 8 from 64 to 4096: use 96 or 104"),
        ({"height": 0}, "use 64"),
        ({"height": -64}, "use 64"),
        ({"width": 5000}, "use 4096"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "1001"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"sampler": "magic"}, "no sampler is named 'magic': choose one of"),
        ({"schedule": "karras-ish"}, "no schedule is named 'karras-ish'"),
        ({"eta": 0.5, "sampler": "euler"}, "eta"),
        ({"timesteps": [900, 100], "sampler": "pndm"}, "timesteps"),
        ({"timesteps": [900, 100], "sigmas": [3.0, 0.0]}, "timesteps and sigmas are both set"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"generator": object()}, "use seed=N"),
        ({"seed": "7"}, "seed is '7'"),
        ({"seed": True}, "seed is True"),
        ({"num_inference_steps": "20"}, "num_inference_steps is '20'"),
        ({"num_images_per_prompt": None, "seed": 1}, "num_images_per_prompt is None"),
        ({"negative_prompt": 5}, "negative_prompt is 5"),
        ({"latents": 3.0}, "latents have shape"),
        ({"cfg_scale": 7}, "unknown request option cfg_scale"),
        ({"latents": np.zeros((1, 4, 9, 8))}, r"latents have shape \[1, 4, 9, 8\]"),
        ({"latents": np.zeros((2, 4, 8, 8))}, r"use shape \[1, C, h, w\]"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"prompt_embeds": np.zeros((1, 77, 32))}, "prompt and prompt_embeds are both set"),
        ({"negative_prompt_embeds": np.zeros((1, 77, 31))}, "expected"),
        ({"negative_prompt_embeds": np.full((1, 77, 32), np.nan)}, "not finite"),
        ({"negative_prompt_embeds": np.zeros((1, 154, 32))}, "of the same length"),
    ],
)
def test_bad_requests_are_one_line(pipe: Pipeline, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        pipe(PROMPT, **options)
    assert "\n" not in str(caught.value)
    # A refused request leaves the pipeline free.
    assert pipe(PROMPT, num_inference_steps=1, output_type="latent").seeds


def test_a_prompt_is_needed(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="prompt"):
        pipe()
    with pytest.raises(RequestError, match="the list of prompts is empty"):
        pipe([])
    with pytest.raises(RequestError, match="at least one"):
        pipe.generate([])


def test_the_checkpoints_own_sampler_is_the_default(pipe: Pipeline, v_pipe: Pipeline) -> None:
    for pipeline, sampler in ((pipe, "pndm"), (v_pipe, "ddim")):
        assert pipeline.manifest.sampler.name == sampler
        options: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "output_type": "latent"}
        default, named = pipeline(PROMPT, **options), pipeline(PROMPT, sampler=sampler, **options)
        np.testing.assert_array_equal(default.images, named.images)


def test_a_closed_pipeline_says_so(small_bundle: Path) -> None:
    with Pipeline.open(small_bundle) as pipeline:
        pass
    with pytest.raises(RequestError, match="closed"):
        pipeline(PROMPT)


def test_a_forgotten_run_frees_the_pipeline(pipe: Pipeline) -> None:
    for _ in pipe.stream(PROMPT, num_inference_steps=5):
        break
    assert pipe(PROMPT, num_inference_steps=1, output_type="latent").seeds


def test_closing_in_the_middle_of_a_run(small_bundle: Path) -> None:
    pipeline = Pipeline.open(small_bundle)
    run = pipeline.stream(PROMPT, num_inference_steps=5)
    pipeline.close()
    with pytest.raises(RequestError, match="closed"):
        run.result()


def test_an_image_that_fails_leaves_the_others(pipe: Pipeline) -> None:
    """One is spoilt in the middle; the other is what it would have been alone, and the error names the seed."""
    common: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": 4, "output_type": "latent"}
    requests = [Request(prompt=PROMPT, seed=seed, **common) for seed in (3, 4)]
    with pipe.stream_requests(requests) as run:
        for progress in run:
            if progress.step == 2:
                spoilt = progress.latents()
                spoilt[0] = np.inf
                progress.replace(spoilt)
                break
        failed, whole = run.outcomes()
    assert isinstance(failed, EngineError)
    assert "seed 3: latents are not finite after step 3 of 4" in str(failed)
    assert not isinstance(whole, EngineError)
    np.testing.assert_allclose(whole.images, pipe(PROMPT, seed=4, **common).images, atol=1e-5)


@pytest.mark.parametrize("options", [{"threads": 0}, {"max_batch": 0}, {"device": "gpu"}])
def test_bad_ways_to_open(small_bundle: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Pipeline.open(small_bundle, **options)


def test_repr_says_what_runs_where(small_bundle: Path) -> None:
    with Pipeline.open(small_bundle, threads=1) as pipe:
        shown = f"Pipeline({str(small_bundle)!r}, backend='onnxruntime', device='cpu', precision='fp32'"
        assert repr(pipe) == f"{shown})"
    assert repr(pipe) == f"{shown}, closed)"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_nothing_of_a_closed_pipeline_is_mapped(small_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")

    def mapped() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{bundle}/" in line]

    pipe = Pipeline.open(bundle, threads=1)
    pipe("a", num_inference_steps=1)
    assert any("embeddings.npy" in line for line in mapped())
    pipe.close()
    assert mapped() == []
