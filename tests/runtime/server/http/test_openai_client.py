"""OpenAI's client, against a real server."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.image_edit_completed_event import ImageEditCompletedEvent
from openai.types.image_gen_completed_event import ImageGenCompletedEvent
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from PIL import Image, ImageChops

from benchmarks.serving.server_process import Server
from sd2rt.runtime import Pipeline

CIRCLE = "a small red circle left of a large blue square on a white background"
SAMPLERS = ("ddim", "euler", "euler-a", "dpmpp-2m", "unipc", "heun")
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def client(demo_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def pipeline(demo_folders: dict[str, Path]) -> Iterator[Pipeline]:
    with Pipeline.open(demo_folders["demo"], device="cpu") as pipeline:
        yield pipeline


def picture(b64: str | None) -> Image.Image:
    assert b64 is not None
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def equal(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def test_an_image(client: openai.OpenAI, pipeline: Pipeline) -> None:
    answer = client.images.generate(
        model="demo",
        prompt=CIRCLE,
        n=2,
        size="128x128",
        user="someone",
        quality="high",
        extra_body={"num_inference_steps": 8, "seed": 3, "guidance_scale": 4.0, "colour": "red"},
    )
    assert answer.data is not None
    expected = pipeline(
        CIRCLE, num_inference_steps=8, seed=3, guidance_scale=4.0, num_images_per_prompt=2
    ).images
    for found, image in zip(answer.data, expected, strict=True):
        assert equal(picture(found.b64_json), image)
    extra: dict[str, Any] = answer.model_dump()["sd2rt"]
    assert (answer.size, answer.output_format, answer.background) == ("128x128", "png", "opaque")
    assert (extra["model"], extra["seeds"], extra["steps"]) == ("demo", [3, 4], 8)
    assert extra["ignored"] == ["colour"]
    assert answer.safety_identifier == "someone"
    assert answer.usage is not None
    # One a word.
    assert answer.usage.input_tokens == answer.usage.total_tokens == len(CIRCLE.split())
    assert answer.usage.input_tokens_details.image_tokens == answer.usage.output_tokens == 0


@pytest.mark.parametrize(("kind", "signature"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
def test_formats(client: openai.OpenAI, kind: Any, signature: bytes) -> None:
    sizes = {}
    for quality in (10, 95):
        answer = client.images.generate(
            prompt=CIRCLE,
            output_format=kind,
            output_compression=quality,
            extra_body={"num_inference_steps": 2, "seed": 1},
        )
        assert answer.data is not None
        assert answer.data[0].b64_json is not None
        data = base64.b64decode(answer.data[0].b64_json)
        assert data.startswith(signature)
        sizes[quality] = len(data)
    assert sizes[10] < sizes[95]


def test_twenty_at_once(demo_server: Server, pipeline: Pipeline) -> None:
    """Different samplers, steps, prompts and seeds together; each picture is the one that it is alone."""
    cases: list[dict[str, Any]] = [
        {
            "prompt": f"a large {COLOURS[index % 4]} {SHAPES[index // 4 % 4]}",
            "num_inference_steps": 3 + index % 5,
            "seed": 100 + index,
            "sampler": SAMPLERS[index % len(SAMPLERS)],
            "guidance_scale": 1.0 + index % 4,
            "negative_prompt": "blurry" if index % 3 == 0 else None,
        }
        for index in range(20)
    ]

    async def all_at_once() -> list[str | None]:
        async with openai.AsyncOpenAI(
            base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0
        ) as client:

            async def one(case: dict[str, Any]) -> str | None:
                extra = {name: value for name, value in case.items() if name != "prompt"}
                answer = await client.images.generate(prompt=case["prompt"], extra_body=extra)
                assert answer.data is not None
                return answer.data[0].b64_json

            return list(await asyncio.gather(*map(one, cases)))

    found = asyncio.run(all_at_once())
    for case, b64 in zip(cases, found, strict=True):
        alone = pipeline(**{name: value for name, value in case.items() if value is not None}).images[0]
        assert equal(picture(b64), alone), case


def test_a_stream(client: openai.OpenAI, pipeline: Pipeline) -> None:
    with client.images.generate(
        prompt=CIRCLE,
        stream=True,
        partial_images=2,
        extra_body={"num_inference_steps": 9, "seed": 5},
    ) as stream:
        *partial, last = stream
    assert isinstance(last, ImageGenCompletedEvent)
    assert [
        event.partial_image_index for event in partial if isinstance(event, ImageGenPartialImageEvent)
    ] == [
        0,
        1,
    ]
    assert {picture(event.b64_json).size for event in partial} == {(128, 128)}
    final = picture(last.b64_json)
    assert equal(final, pipeline(CIRCLE, num_inference_steps=9, seed=5).images[0])
    assert not equal(picture(partial[0].b64_json), final)
    assert (last.size, last.output_format, last.usage.output_tokens) == ("128x128", "png", 0)


def test_an_async_stream(demo_server: Server) -> None:
    async def kinds() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="x") as client:
            stream = await client.images.generate(
                prompt=CIRCLE, stream=True, partial_images=0, extra_body={"num_inference_steps": 2}
            )
            return [event.type async for event in stream]

    assert asyncio.run(kinds()) == ["image_generation.completed"]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_an_edit_with_a_mask(client: openai.OpenAI, demo_folders: dict[str, Path]) -> None:
    """Transparent areas are edited, all others stay as they are."""
    original = Image.new("RGB", (128, 128), (250, 250, 250))
    mask = Image.new("RGBA", original.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
    answer = client.images.edit(
        image=("a.png", png(original)),
        mask=("m.png", png(mask)),
        prompt="a red circle",
        extra_body={"num_inference_steps": 6, "seed": 2},
    )
    assert answer.data is not None
    found = picture(answer.data[0].b64_json)
    with Pipeline.open(demo_folders["demo-inpaint"], device="cpu") as inpainting:
        expected = inpainting(
            "a red circle", image=original, mask_image=mask, paste=True, num_inference_steps=6, seed=2
        ).images[0]
    assert equal(found, expected)
    right = (64, 0, 128, 128)
    assert equal(found.crop(right), original.crop(right))
    assert answer.model_dump()["sd2rt"]["model"] == "demo-inpaint"


def test_an_edit_of_the_masked_area_alone(client: openai.OpenAI, pipeline: Pipeline) -> None:
    """By a model without an input for masks; the answer has the image's own size."""
    original = Image.linear_gradient("L").convert("RGB").resize((200, 150))
    mask = Image.new("RGBA", original.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (60, 40, 100, 80))
    options: dict[str, Any] = {
        "num_inference_steps": 6,
        "seed": 2,
        "only_masked": True,
        "mask_padding": 12,
        "strength": 0.8,
    }
    answer = client.images.edit(
        model="demo",
        image=("a.png", png(original)),
        mask=("m.png", png(mask)),
        prompt="a red circle",
        extra_body=options,
    )
    assert answer.data is not None
    found = picture(answer.data[0].b64_json)
    expected = pipeline(
        "a red circle", negative_prompt="", image=original, mask_image=mask, **options
    ).images[0]
    assert equal(found, expected)
    assert equal(found.crop((0, 0, 60, 150)), original.crop((0, 0, 60, 150)))


def test_an_edit_of_a_cropped_image(client: openai.OpenAI, pipeline: Pipeline) -> None:
    original = Image.linear_gradient("L").convert("RGB").resize((200, 128))
    options: dict[str, Any] = {"num_inference_steps": 6, "seed": 2, "resize_mode": "crop", "strength": 0.8}
    answer = client.images.edit(
        model="demo",
        image=("a.png", png(original)),
        prompt="a red circle",
        size="128x128",
        extra_body=options,
    )
    assert answer.data is not None
    cropped = original.crop((36, 0, 164, 128))
    plain = {name: value for name, value in options.items() if name != "resize_mode"}
    expected = pipeline("a red circle", negative_prompt="", image=cropped, **plain).images[0]
    assert equal(picture(answer.data[0].b64_json), expected)


def test_an_edit_without_a_mask(client: openai.OpenAI, pipeline: Pipeline) -> None:
    original = Image.linear_gradient("L").convert("RGB").resize((128, 128))
    with client.images.edit(
        image=[("a.png", png(original))],
        prompt="a red circle",
        stream=True,
        partial_images=1,
        extra_body={"num_inference_steps": 8, "seed": 2, "strength": 0.5},
    ) as stream:
        *partial, last = stream
    assert isinstance(last, ImageEditCompletedEvent)
    assert [event.type for event in partial] == ["image_edit.partial_image"]
    expected = pipeline("a red circle", image=original, num_inference_steps=8, seed=2, strength=0.5).images[0]
    assert equal(picture(last.b64_json), expected)


def test_upscaling(client: openai.OpenAI) -> None:
    answer = client.images.edit(
        model="demo-x4",
        image=png(Image.new("RGB", (32, 32), (200, 30, 30))),
        prompt="a red square",
        extra_body={"num_inference_steps": 2, "seed": 1},
    )
    assert answer.data is not None
    assert picture(answer.data[0].b64_json).size == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "kind", "code", "param"),
    [
        ({"model": "dall-e-3"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "demo-inpaint"}, openai.BadRequestError, "task_not_supported", "model"),
        ({"size": "100x100"}, openai.BadRequestError, "size_not_supported", "size"),
        ({"size": "1024x1024"}, openai.BadRequestError, "size_not_supported", "size"),
        ({"n": 11}, openai.BadRequestError, "invalid_value", "n"),
        ({"response_format": "url"}, openai.BadRequestError, "invalid_value", "response_format"),
        ({"background": "transparent"}, openai.BadRequestError, "invalid_value", "background"),
        ({"stream": True, "n": 2}, openai.BadRequestError, "invalid_value", "n"),
        (
            {"extra_body": {"sampler": "lcm", "schedule": "karras"}},
            openai.BadRequestError,
            "invalid_value",
            "schedule",
        ),
        (
            {"extra_body": {"num_inference_steps": 51}},
            openai.BadRequestError,
            "invalid_value",
            "num_inference_steps",
        ),
        ({"extra_body": {"loras": [{"name": "x"}]}}, openai.BadRequestError, "invalid_value", "loras"),
        ({"extra_body": {"clip_skip": 99}}, openai.BadRequestError, "invalid_value", None),
    ],
)
def test_errors(
    client: openai.OpenAI,
    arguments: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(kind) as error:
        client.images.generate(**{"prompt": CIRCLE, **arguments})
    assert error.value.code == code
    assert param is None or error.value.param == param
    assert error.value.request_id
    assert "\n" not in error.value.message


def test_edits_that_are_refused(client: openai.OpenAI) -> None:
    small = png(Image.new("RGB", (128, 128)))
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=b"not an image", prompt="a")
    assert error.value.code == "invalid_image"
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=small[:60], prompt="a")
    assert error.value.code == "invalid_image"
    with pytest.raises(openai.BadRequestError):
        client.images.edit(image=small, mask=png(Image.new("RGBA", (64, 64))), prompt="a")
    with pytest.raises(openai.BadRequestError):
        client.images.edit(image=[small, small], prompt="a")
    # The size of an image without a size would decide the cost.
    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(image=png(Image.new("RGB", (1000, 300))), prompt="a")
    assert error.value.code == "size_not_supported"


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["demo", "demo-inpaint", "demo-depth", "demo-x4"]
    assert client.models.retrieve("demo-x4").owned_by == "sd2rt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_variations_are_not_there(client: openai.OpenAI) -> None:
    """They are retired upstream."""
    with pytest.raises(openai.NotFoundError):
        client.post("/images/variations", cast_to=object, body={})


def test_a_full_queue_and_retries(demo_folders: dict[str, Path]) -> None:
    """A client that may not retry is refused; one that may gets its image after the time that it was told."""
    with Server(demo_folders["demo"], "--max-queue", "1") as server:
        slow = {"num_inference_steps": 100, "seed": 1}

        def generate(retries: int, steps: int) -> int:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=retries) as client:
                answer = client.images.generate(
                    prompt=CIRCLE, extra_body={**slow, "num_inference_steps": steps}
                )
                assert answer.data is not None
                return len(answer.data)

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(generate, 0, 100)
            server.wait_until(lambda: b"sd2rt_requests_running 1.0" in server.get("/metrics")[1])
            with pytest.raises(openai.RateLimitError) as error:
                generate(0, 2)
            assert error.value.code == "queue_full"
            assert 1 <= int(error.value.response.headers["retry-after"]) <= 120
            patient = threads.submit(generate, 20, 2)
            assert first.result() == 1
            assert patient.result() == 1


def test_keys(demo_folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("s3cret-two\n")
    with Server(demo_folders["demo"], "--api-key", "s3cret-one", "--api-key-file", file) as server:
        for key in ("s3cret-one", "s3cret-two"):
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client:
                assert [model.id for model in client.models.list()] == ["demo"]
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="third") as client,
            pytest.raises(openai.AuthenticationError) as error,
        ):
            client.models.list()
        assert error.value.code == "invalid_api_key"
        for path in ("/metrics", "/version", "/openapi.json", "/v1/models", "/nothing"):
            assert server.get(path)[0] == 401
        for path in ("/livez", "/readyz", "/healthz", "/health"):
            assert server.get(path)[0] == 200
        assert "s3cret" not in server.log
