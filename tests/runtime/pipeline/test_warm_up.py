"""After a warm-up on a simulated GPU, steady traffic captures, compiles and allocates nothing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime import AsyncPipeline, Pipeline
from sd2rt.runtime.denoising.stepper import Stepper
from sd2rt.runtime.pipeline.run import Run

from .conftest import Open

CLOSE = 1e-5
"""Tolerance relative to the largest value: kernels sum in another order when a call has more rows."""
EVENTS = ("capture", "allocate", "pin", "create context", "deserialize")
SIZES = ((64, 64), (128, 64))
PROMPTS = ("a fox", "snow AND night", "a lake", "[fox|owl]", "hill AND river", "a storm")
SAMPLERS = ("ddim", "euler-a", "dpmpp-2m", "unipc", "pndm", "heun")
GUIDANCE: tuple[dict[str, Any], ...] = (
    {"guidance_scale": 7.5},
    {"guidance_scale": 1.0},
    {"guidance_interval": (0.4, 4.0)},
    {"guidance_scale": (9, 2), "guidance_rescale": 0.5},
)
WARM: dict[str, Any] = {"sizes": SIZES, "prompts": 2}


def request(source: random.Random) -> dict[str, Any]:
    width, height = source.choice(SIZES)
    return {
        "prompt": source.choice(PROMPTS),
        "prompt_syntax": "a1111",
        "sampler": source.choice(SAMPLERS),
        "num_inference_steps": source.randint(3, 12),
        "num_images_per_prompt": source.choice((1, 1, 1, 2)),
        "seed": source.randint(0, 99),
        "width": width,
        "height": height,
        "output_type": source.choice(("latent", "latent", "np")),
        **source.choice(GUIDANCE),
    }


def traffic(
    pipe: Pipeline, calls: int, seed: int = 0
) -> Iterator[tuple[dict[str, Any], NDArray[np.float32]]]:
    """Requests that join at random moments, until so many denoiser calls were made; some are closed on the way."""
    source, loop = random.Random(seed), pipe.step_loop
    running: list[tuple[dict[str, Any], Run[Any]]] = []
    made = 0
    while made < calls:
        if len(running) < 6 and source.random() < 0.4:
            asked = request(source)
            run = pipe.stream(**asked)
            run.start(lambda state: None, object())
            running.append((asked, run))
        with loop.turn():
            made += loop._call()
        if running and source.random() < 0.02:
            running.pop(source.randrange(len(running)))[1].close()
        for asked, run in [each for each in running if each[1].finished]:
            running.remove((asked, run))
            yield asked, run.result()[0].images
    for _, run in running:
        run.close()


def events(gpu: Any) -> Counter[str]:
    return Counter({name: gpu.counts[name] for name in EVENTS})


def test_a_thousand_calls_of_mixed_traffic(on_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, pipe = on_gpu("eager", max_batch=4)
    pipe.warm_up(**WARM)
    sizes: Counter[int] = Counter()
    step = Stepper.step

    def counted(self: Stepper, members: Any) -> Any:
        sizes[len(members)] += 1
        return step(self, members)

    monkeypatch.setattr(Stepper, "step", counted)
    before, made = events(gpu), 0
    for _ in traffic(pipe, 1000):
        made += 1
    assert events(gpu) - before == Counter()
    assert {*sizes} == {1, 2, 3, 4}
    assert made > 50


def test_without_buckets_the_same_traffic_captures_and_allocates(on_gpu: Open) -> None:
    """The control: what is warmed up is what the buckets are made of."""
    gpu, pipe = on_gpu("eager", max_batch=4)
    pipe.warm_up(**WARM)
    pipe.step_loop.stepper._buckets = None
    before = events(gpu)
    for _ in traffic(pipe, 200):
        pass
    further = events(gpu) - before
    assert further["capture"] > 5
    assert further["allocate"] > 5


def test_pictures_are_those_of_exact_sizes(on_gpu: Open) -> None:
    _, pipe = on_gpu("random", max_batch=4)
    pipe.warm_up(**WARM)
    made = [(asked, images) for asked, images in traffic(pipe, 60, 3) if asked["output_type"] == "latent"]
    pipe.step_loop.stepper._buckets = None
    assert len(made) > 3
    for asked, images in made:
        expected = pipe(**asked).images
        assert np.abs(images - expected).max() <= CLOSE * np.abs(expected).max()


def test_sizes_between_are_added_where_they_save(on_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cost that grows with the rows pays for three images beside two and four; a flat one does not."""
    for cost, expected in ((lambda dims: dims["R"], {1, 2, 3, 4, 6, 8}), (lambda dims: 8, {1, 2, 4, 8})):
        _, pipe = on_gpu("eager", max_batch=8)
        monkeypatch.setattr(
            "sd2rt.runtime.pipeline.warm_up.measured_seconds", lambda denoiser, dims, cost=cost: cost(dims)
        )
        pipe.warm_up()
        assert pipe._buckets is not None
        assert {bucket.samples for bucket in pipe._buckets.measured} == expected
        width, height = pipe.manifest.native_sizes[0]
        curve = pipe.step_loop.scheduler.curve(((4, height // 8, width // 8), 77)).measured
        # Padding is part of the cost: five images cost what six do, or eight.
        assert [curve[batch] for batch in range(1, 9)] == (
            [2, 4, 6, 8, 12, 12, 16, 16] if 3 in expected else [8] * 8
        )


def test_progress_and_an_interruption(on_gpu: Open) -> None:
    gpu, pipe = on_gpu("eager", max_batch=2)
    seen: list[tuple[int, int]] = []

    def interrupted(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.warm_up(progress=interrupted)
    assert pipe("a fox", num_inference_steps=2, output_type="np").images.std() > 0
    pipe.warm_up(progress=lambda done, total: seen.append((done, total)))
    rest = seen[8:]
    assert [done for done, _ in rest] == list(range(1, len(rest) + 1))
    assert rest[-1][0] == rest[-1][1]
    before = events(gpu)
    pipe.warm_up()
    assert events(gpu) - before == Counter()


def test_other_sizes_do_not_push_the_warmed_ones_out(on_gpu: Open) -> None:
    gpu, pipe = on_gpu("eager", max_batch=2)
    # The larger one needs the most memory for activations of all.
    pipe.warm_up([(64, 64), (512, 256)])
    options: dict[str, Any] = {"num_inference_steps": 2, "sampler": "ddim", "output_type": "latent"}
    for index in range(20):
        pipe("a fox", width=64 * (1 + index % 8), height=64 * (2 + index // 8), **options)
    before = events(gpu)
    pipe(["a fox", "an owl"], width=64, height=64, **options)
    assert events(gpu) - before == Counter()


def test_a_lora_is_warmed_up_too(on_gpu: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines are others then, and so are their sessions."""
    gpu, pipe = on_gpu("eager", max_batch=2)
    pipe.warm_up([(64, 64)])
    monkeypatch.setattr(
        "sd2rt.runtime.pipeline.loaded_bundle.changed_parts", lambda *loras: {"denoiser": None}
    )
    before = events(gpu)
    pipe.unload_lora()
    assert (events(gpu) - before)["capture"] > 0
    before = events(gpu)
    pipe("a fox", num_inference_steps=2, output_type="np", width=64, height=64)
    assert events(gpu) - before == Counter()


def test_a_warm_up_of_a_task(on_gpu: Open) -> None:
    gpu, pipe = on_gpu("eager", max_batch=2)

    async def used() -> None:
        progress: list[int] = []
        tasks = AsyncPipeline(pipe)
        await tasks.warm_up([(64, 64)], progress=lambda done, total: progress.append(done))
        assert progress == list(range(1, len(progress) + 1))
        before = events(gpu)
        options: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 4, "output_type": "np"}
        await asyncio.gather(*(tasks("a fox", seed=seed, **options) for seed in range(3)))
        assert events(gpu) - before == Counter()
        warming = asyncio.create_task(
            tasks.warm_up([(64, 64)], progress=lambda done, total: warming.cancel())
        )
        with pytest.raises(asyncio.CancelledError):
            await warming
        await tasks("a fox", **options)
        await tasks.close()

    asyncio.run(used())


def test_on_a_cpu_each_part_is_launched(small_bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Pipeline.open(small_bundle, threads=1) as pipe:
        pipe.warm_up(image_inputs=True, progress=lambda done, total: seen.append((done, total)))
        expected = pipe("a fox", seed=1, num_inference_steps=2, output_type="np").images
    # Decoder, encoder, text encoder and denoiser.
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with Pipeline.open(small_bundle, threads=1) as pipe:
        images = pipe("a fox", seed=1, num_inference_steps=2, output_type="np").images
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, "no size"),
        ({"sizes": [(64, 65)]}, "height 65 is not a multiple of 8"),
        ({"sizes": [64]}, "not a pair"),
        ({"sizes": [(64, "64")]}, "not a pair"),
        ({"prompts": 0}, "prompts is 0"),
        ({"chunks": True}, "chunks is True"),
        ({"chunks": 65}, "chunks is 65"),
    ],
)
def test_wrong_arguments(small_bundle: Path, arguments: Any, message: str) -> None:
    with Pipeline.open(small_bundle, threads=1) as pipe, pytest.raises(RequestError, match=message):
        pipe.warm_up(**arguments)
