"""Requests through a worker process: the pictures of `sd2rt run`, whatever else is under way."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sd2rt.runtime.cli.main import main
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GenerationRequest, Partial, Started, Stepped
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings

from .serving import Serving, completed, events_of, serve, until

SAMPLERS = ("ddim", "euler-a", "dpmpp-2m", "unipc")
NO_STEPS = 900
"""Steps that take long enough to be interrupted."""


def asked(index: int = 0, **options: Any) -> GenerationRequest:
    """A request unlike those of other numbers."""
    fields: dict[str, Any] = {
        "prompt": f"a lighthouse {index}",
        "seed": 100 + index,
        "sampler": SAMPLERS[index % 4],
        "num_inference_steps": 2 + index % 3,
        "guidance_scale": (1.0, 4.0, 7.5)[index % 3],
        "width": 64 * (1 + index % 2),
        "height": 64,
    }
    return GenerationRequest(
        request_id=f"request-{index}",
        model="small",
        fields=fields | options.pop("fields", {}),
        count=1 + index % 5 // 4,
        **options,
    )


def run_command(request: GenerationRequest, bundle: Path, folder: Path, capsys: Any) -> list[Image.Image]:
    """Make the same images with `sd2rt run`."""
    fields = request.fields
    words = [
        *("run", str(bundle), fields["prompt"], "--steps", str(fields["num_inference_steps"])),
        *("--seed", str(fields["seed"]), "--sampler", fields["sampler"], "--threads", "1", "-q"),
        *("--size", f"{fields['width']}x{fields['height']}", "--count", str(request.count)),
        *("--guidance", str(fields["guidance_scale"]), "--output", str(folder)),
    ]
    assert main(words) == 0, capsys.readouterr()
    images: list[Image.Image] = [
        Image.open(folder / f"{fields['seed'] + index}.png") for index in range(request.count)
    ]
    for image in images:
        image.load()
    return images


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def opened(result: Completed) -> list[Image.Image]:
    return [Image.open(io.BytesIO(image.data)) for image in result.images]


def nothing_is_left(client: WorkerClient) -> bool:
    return client.stats.waiting == client.stats.running == 0


def test_twenty_at_once_are_the_pictures_of_the_command(
    small: Serving, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [asked(index) for index in range(20)]

    async def all_at_once() -> list[Completed]:
        return await asyncio.gather(*(completed(small.client, request) for request in requests))

    results = small(all_at_once)
    for request, result in zip(requests, results, strict=True):
        expected = run_command(request, small_bundle, tmp_path / request.request_id, capsys)
        assert [image.seed for image in result.images] == [
            request.fields["seed"] + index for index in range(request.count)
        ]
        for made, image in zip(opened(result), expected, strict=True):
            assert np.array_equal(pixels(made), pixels(image))
            # The command names the bundle's folder; a server does not tell its clients of its folders.
            own = {name: json.loads(text) for name, text in image.text.items() if name == "sd2rt"}  # type: ignore[attr-defined]
            assert own["sd2rt"].pop("place") == str(small_bundle)
            assert json.loads(made.text["sd2rt"]) == own["sd2rt"]  # type: ignore[attr-defined]
            assert made.text["parameters"] == image.text["parameters"]  # type: ignore[attr-defined]
    assert nothing_is_left(small.client)


def test_events_come_in_order(small: Serving) -> None:
    request = asked(1, fields={"num_inference_steps": 40}, previews=True, partial_images=3)
    events = small(lambda: events_of(small.client, request))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Completed)
    steps = [event for event in events if isinstance(event, Stepped)]
    assert [step.step for step in steps] == sorted({step.step for step in steps})
    assert {step.steps for step in steps} == {40}
    assert all(step.preview is not None for step in steps)
    preview = Image.open(io.BytesIO(steps[-1].preview or b""))
    assert preview.size == (16, 8)
    partials = [event for event in events if isinstance(event, Partial)]
    assert [partial.index for partial in partials] == list(range(len(partials)))
    assert 1 <= len(partials) <= 3
    assert {Image.open(io.BytesIO(partial.data)).size for partial in partials} == {(128, 64)}
    facts = events[-1].facts
    assert facts["sampler"] == "euler-a"
    assert facts["steps"] == 40
    assert facts["warnings"] == []
    assert set(facts["stages"]) == {"prepare", "step", "decode", "finish"}


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_other_formats_show_the_same_picture(small: Serving, file_format: Any) -> None:
    (expected,) = opened(small.generate(asked()))
    (made,) = opened(small.generate(asked(output_format=file_format)))
    (coarse,) = opened(small.generate(asked(output_format=file_format, compression=5)))
    assert made.format == file_format.upper()
    difference = np.abs(pixels(made).astype(int) - pixels(expected)).mean()
    assert difference < np.abs(pixels(coarse).astype(int) - pixels(expected)).mean()
    comment = made.getexif().get_ifd(0x8769)[0x9286]
    assert comment[8:].decode("utf-16-be") == expected.text["parameters"]  # type: ignore[attr-defined]


def test_a_closed_generator_frees_its_place(small: Serving) -> None:
    async def leave(after: type) -> None:
        async with aclosing(small.client.generate(asked(fields={"num_inference_steps": NO_STEPS}))) as events:
            async for event in events:
                if isinstance(event, after):
                    break

    for after in (Started, Stepped):
        before = small.client.stats.cancelled
        small(partial(leave, after))
        small(lambda: until(lambda: nothing_is_left(small.client)))
        assert small.client.stats.cancelled == before + 1
    assert len(small.generate(asked()).images) == 1


def test_a_cancelled_task_frees_its_place(small: Serving) -> None:
    async def cancel(delay: float) -> None:
        task = asyncio.create_task(completed(small.client, asked(fields={"num_inference_steps": NO_STEPS})))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: nothing_is_left(small.client))

    for delay in (0, 0.001, 0.02, 0.2):
        small(partial(cancel, delay))


def test_a_full_queue_refuses(small: Serving) -> None:
    async def fill() -> ServerError:
        tasks = [
            asyncio.create_task(completed(small.client, asked(fields={"num_inference_steps": NO_STEPS})))
            for _ in range(32)
        ]
        await until(lambda: small.client.stats.waiting + small.client.stats.running == 32)
        try:
            with pytest.raises(ServerError) as refused:
                await completed(small.client, asked())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: nothing_is_left(small.client))
        return refused.value

    error = small(fill)
    assert error.code == "queue_full"
    assert error.retry_after is not None
    assert 1 <= error.retry_after <= 120


def test_an_urgent_request_overtakes(small: Serving) -> None:
    ended: list[str] = []

    async def one(name: str, priority: Any) -> None:
        await completed(small.client, asked(fields={"num_inference_steps": 60}, priority=priority))
        ended.append(name)

    async def race() -> None:
        batch = [asyncio.create_task(one(f"batch {index}", "batch")) for index in range(5)]
        await until(lambda: small.client.stats.running > 0)
        await one("urgent", "interactive")
        await asyncio.gather(*batch)

    small(race)
    assert ended.index("urgent") < 3


@pytest.mark.parametrize(
    ("options", "code", "param", "words"),
    [
        ({"deadline_ms": 1, "fields": {"num_inference_steps": 900}}, "deadline_", "deadline_ms", "deadline"),
        ({"fields": {"width": 100}}, "size_not_supported", "size", "96 or 104"),
        ({"fields": {"sampler": "nothing"}}, "invalid_value", "sampler", "nothing"),
        ({"fields": {"image": "/etc/passwd"}}, "invalid_value", "image", "unknown request option"),
        ({"fields": {"seed": "a"}}, "invalid_value", "seed", "seed is 'a'"),
        ({"fields": {"eta": float("nan")}}, "invalid_value", None, "finite"),
        ({"images": {"mask": b""}}, "invalid_image", "mask", "empty"),
        ({"images": {"image": b"http://127.0.0.1/"}}, "invalid_image", "image", "not an image"),
        ({"priority": "first"}, "invalid_value", "priority", "interactive"),
        ({"loras": (("style", 1.0),)}, "invalid_value", "loras", "no LoRA is named 'style'"),
    ],
)
def test_refusals_name_the_field(
    small: Serving, options: dict[str, Any], code: str, param: str | None, words: str
) -> None:
    with pytest.raises(ServerError) as refused:
        small.generate(asked(**options))
    assert refused.value.code.startswith(code)
    assert refused.value.param == param
    assert words in refused.value.message
    assert "\n" not in refused.value.message
    assert nothing_is_left(small.client)


def test_an_unknown_model_is_refused(small: Serving) -> None:
    request = GenerationRequest(request_id="a", model="other", fields={"prompt": ""})
    with pytest.raises(ServerError, match="no model is named 'other': use small") as refused:
        small.generate(request)
    assert refused.value.answer.status == 404


def test_a_draining_client_finishes_and_refuses(small_bundle: Path) -> None:
    with serve(WorkerSettings(bundles={"small": str(small_bundle)}, threads=1)) as serving:
        client = serving.client

        async def drain() -> list[Completed]:
            tasks = [asyncio.create_task(completed(client, asked(index))) for index in range(6)]
            await until(lambda: client.stats.waiting + client.stats.running >= 6)
            closing = asyncio.create_task(client.close(60))
            await asyncio.sleep(0)
            with pytest.raises(ServerError, match="shutting down") as refused:
                await completed(client, asked())
            assert refused.value.code == "draining"
            results = await asyncio.gather(*tasks)
            await closing
            return results

        assert len(serving(drain)) == 6
        assert client.pids == {}


def test_models_and_numbers(small: Serving) -> None:
    model = small.client.models["small"]
    assert (model.kind, model.width, model.height, model.loaded) == ("base", 64, 64, True)
    assert model.tasks["text-to-image"].guidance_scale == 7.5
    before = small.client.stats
    small.generate(asked(fields={"num_inference_steps": 20}))
    small(lambda: until(lambda: small.client.stats.image_steps >= before.image_steps + 20))
    stats = small.client.stats
    assert stats.images == before.images + 1
    assert stats.up == {"cpu": True}
    assert stats.step_seconds[1] > 0
    assert stats.device_memory_bytes["cpu"] > 10**7


def test_the_front_imports_no_engine() -> None:
    """Neither NumPy nor Pillow, nor what only workers need."""
    code = (
        "import sys, sd2rt.runtime.server.worker_client as client\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    for name in ("numpy", "PIL", "pydantic", "onnxruntime", "tokenizers"):
        assert f"'{name}'" not in done.stdout


def test_warnings_are_those_of_their_request(
    small: Serving, small_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each time again, with others beside it, and not in the log: they quote prompts."""
    file = io.BytesIO()
    Image.new("RGB", (100, 130)).save(file, "PNG")
    long = " ".join(["fox"] * 74 + ["secretly", "asleep", "tonight"])
    resized = asked(
        fields={"width": None, "height": None, "strength": 1.0}, images={"image": file.getvalue()}
    )
    requests = [asked(), asked(fields={"prompt": long}), resized] * 2

    async def all_at_once() -> list[Completed]:
        return await asyncio.gather(*(completed(small.client, request) for request in requests))

    results = small(all_at_once)
    for plain, cut, image in (results[:3], results[3:]):
        assert plain.facts["warnings"] == []
        [warning] = cut.facts["warnings"]
        assert "longer than 77 tokens" in warning
        assert "asleep tonight" in warning
        [warning] = image.facts["warnings"]
        assert "100x130: resized to 96x128" in warning
        assert (plain.facts["prompt_tokens"], cut.facts["prompt_tokens"]) == (3, 77)
    assert "asleep" not in capfd.readouterr().err
