"""Previews of a run's images: rough ones and decoded ones, which change no picture and stop nobody for long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime import Pipeline
from sd2rt.runtime.denoising.stepper import Stepper
from sd2rt.runtime.networks.vae import Vae

SAMPLERS = ("ddim", "euler-a", "heun", "dpmpp-2m", "unipc")


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


def options(sampler: str, seed: int = 3, **more: Any) -> dict[str, Any]:
    return {"prompt": "a lighthouse", "num_inference_steps": 4, "seed": seed, "sampler": sampler, **more}


def pixels(picture: Image.Image) -> bytes:
    return picture.tobytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_previews_change_no_picture(pipe: Pipeline, sampler: str) -> None:
    request = options(sampler, width=128, num_images_per_prompt=2)
    expected = pipe(**request).images
    with pipe.stream(**request) as run:
        for progress in run:
            rough, decoded = progress.previews(), progress.previews(decoder=True)
            assert [picture.size for picture in rough] == [(16, 8)] * 2
            assert [picture.size for picture in decoded] == [(128, 64)] * 2
        (output,) = run.result()
    assert [pixels(image) for image in output.images] == [pixels(image) for image in expected]
    # No noise is left after the last step.
    assert [pixels(image) for image in decoded] == [pixels(image) for image in expected]


def test_rough_previews_are_the_matrix_of_the_denoisers_input(pipe: Pipeline) -> None:
    """Samplers keep their latents on different scales; shown is what the next call gets."""
    for sampler, scaled in (("ddim", False), ("euler", True)):
        with pipe.stream(**options(sampler)) as run:
            for progress in run:
                latents = progress.latents()[0]
                done = progress.step
                (trajectory,) = run.jobs[0][0].trajectories
                if done < progress.steps:
                    scale = np.float32(trajectory.plan.steps[done].weights[0])
                    assert (scale < 1) == scaled
                    latents = latents * scale
                (picture,) = progress.previews()
                assert pixels(picture) == pixels(pipe.preview.image(latents))


def test_runs_of_other_threads_are_not_changed(pipe: Pipeline) -> None:
    expected = {seed: pipe(**options(SAMPLERS[seed], seed)).images[0] for seed in range(5)}
    errors: list[BaseException] = []

    def watch(seed: int) -> None:
        try:
            with pipe.stream(**options(SAMPLERS[seed], seed)) as run:
                for progress in run:
                    (picture,) = progress.previews(decoder=bool(seed % 2))
                assert pixels(run.result()[0].images[0]) == pixels(expected[seed])
                if seed % 2:
                    assert pixels(picture) == pixels(expected[seed])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=watch, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


def test_others_make_a_step_between_two_previews(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    step, decode = Stepper.step, Vae.decode

    def counted_step(self: Stepper, members: Any) -> Any:
        calls.append("step")
        return step(self, members)

    def counted_decode(self: Vae, latents: Float32Array) -> Float32Array:
        calls.append("decode")
        return decode(self, latents)

    with (
        pipe.stream(**options("ddim", num_inference_steps=20)) as other,
        pipe.stream(**options("ddim", num_images_per_prompt=3)) as run,
    ):
        progress = next(iter(run))
        # As a thread that drives its run to the end would; here nobody makes its calls but those who wait.
        other.start(lambda state: None, user=None)
        monkeypatch.setattr(Stepper, "step", counted_step)
        monkeypatch.setattr(Vae, "decode", counted_decode)
        assert len(progress.previews(decoder=True)) == 3
    assert calls.count("decode") == 3
    assert "decode decode" not in " ".join(calls)


def test_a_step_later_or_closed(pipe: Pipeline) -> None:
    run = pipe.stream(**options("ddim"))
    steps = iter(run)
    first = next(steps)
    next(steps)
    for decoder in (False, True):
        with pytest.raises(RequestError, match="has made another step"):
            first.previews(decoder=decoder)
    last = next(steps)
    run.close()
    for decoder in (False, True):
        with pytest.raises(RequestError, match="this run is closed"):
            last.previews(decoder=decoder)


def test_a_preview_that_fails_fails_alone(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pipe(**options("ddim")).images[0]

    def failing(self: Vae, latents: Float32Array) -> Float32Array:
        raise EngineError("decoder failed")

    with pipe.stream(**options("ddim")) as run:
        for progress in run:
            with monkeypatch.context() as patched:
                patched.setattr(Vae, "decode", failing)
                with pytest.raises(EngineError, match="decoder failed"):
                    progress.previews(decoder=True)
        assert pixels(run.result()[0].images[0]) == pixels(expected)


def test_values_that_are_not_finite_are_gray(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of noise are in a precision in which the image's own are finite."""

    def overflowing(self: Vae, latents: Float32Array) -> Float32Array:
        return np.full((3, 64, 64), np.nan, np.float32)

    with pipe.stream(**options("ddim")) as run:
        progress = next(iter(run))
        monkeypatch.setattr(Vae, "decode", overflowing)
        (picture,) = progress.previews(decoder=True)
    assert np.unique(np.asarray(picture)).tolist() == [128]


@pytest.mark.parametrize("tile", [32, 64])
def test_images_in_tiles_are_shown_whole(small_upscaler_bundle: Path, tile: int) -> None:
    source = Image.linear_gradient("L").convert("RGB").resize((44, 36))
    with Pipeline.open(small_upscaler_bundle, threads=1, tile=tile) as pipe:
        with pipe.stream("a hill", image=source, num_inference_steps=2, seed=3) as run:
            tiles = len(run.jobs[0][0].trajectories)
            assert (tiles > 1) == (tile < 44)
            for progress in run:
                (rough,), (decoded,) = progress.previews(), progress.previews(decoder=True)
                assert (rough.size, decoded.size) == ((44, 36), (176, 144))
            (output,) = run.result()
        assert pixels(decoded) == pixels(output.images[0])
