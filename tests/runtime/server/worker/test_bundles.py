"""Several bundles and LoRA sets in one worker: who is loaded, who makes room, and what they draw."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Device
from sd2rt.engines.lora.file import read_lora
from sd2rt.engines.weights.initializers import Weights
from sd2rt.runtime import Pipeline
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GenerationRequest, LoraSet
from sd2rt.runtime.server.worker.bundles import ServedBundles
from sd2rt.runtime.server.worker_settings import WorkerSettings

from ....lora_files import LINEAR, draw, write
from ..serving import completed, serve

FIELDS: dict[str, Any] = {"prompt": "a fox", "seed": 1, "num_inference_steps": 2}


def asked(model: str, loras: LoraSet = (), **fields: Any) -> GenerationRequest:
    return GenerationRequest(request_id="a", model=model, fields=FIELDS | fields, loras=loras)


def pixels(result: Completed) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(result.images[0].data)))


@pytest.fixture(scope="module")
def files(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three LoRAs for the small bundle."""
    folder = tmp_path_factory.mktemp("loras")
    shapes = {
        network: Weights(small_bundle / part / "initializers.json").shapes()
        for network, part in (("unet", "denoiser"), ("text_encoder", "text_encoder"))
    }
    return {
        name: str(write(folder / f"{name}.safetensors", "kohya", draw(LINEAR, shapes, seed=seed)))
        for seed, name in enumerate(("a", "b", "c"))
    }


def expected(bundle: Path, files: dict[str, str], loras: LoraSet = ()) -> NDArray[np.uint8]:
    opened = [
        read_lora(files[name], scale=scales[0], text_scale=scales[-1], name=name) for name, *scales in loras
    ]
    with Pipeline.open(bundle, threads=1, loras=opened) as pipe:
        return np.asarray(pipe(**FIELDS, negative_prompt="").images[0])


def test_sets_of_loras(small_bundle: Path, files: dict[str, str]) -> None:
    """Sets share a device with the plain bundle; the least recently used one makes room."""
    sets: list[LoraSet] = [(), (("a", 0.8),), (("a", 0.8), ("b", 1.0)), (("c", -1.0, 0.5),)]
    pictures = [expected(small_bundle, files, loras) for loras in sets]
    assert len({picture.tobytes() for picture in pictures}) == len(sets)
    settings = WorkerSettings(bundles={"small": str(small_bundle)}, threads=1, loras=files, lora_sets=2)
    with serve(settings) as serving:
        assert serving.client.models["small"].loras == ("a", "b", "c")
        for loras, picture in [*zip(sets, pictures, strict=True), (sets[1], pictures[1])]:
            result = serving.generate(asked("small", loras))
            assert np.array_equal(pixels(result), picture)

        async def all_at_once() -> list[Completed]:
            return await asyncio.gather(
                *(completed(serving.client, asked("small", loras)) for loras in sets[:3] * 3)
            )

        # A set beside the plain bundle, step by step.
        for result, picture in zip(serving(all_at_once), pictures[:3] * 3, strict=True):
            assert np.array_equal(pixels(result), picture)

        async def beyond() -> ServerError:
            busy = [
                asyncio.create_task(completed(serving.client, asked("small", loras, num_inference_steps=900)))
                for loras in sets[1:3]
            ]
            try:
                while serving.client.stats.running < 2:
                    await asyncio.sleep(0.01)
                with pytest.raises(ServerError) as refused:
                    await completed(serving.client, asked("small", sets[3]))
                # One that is loaded, and the bundle itself, are served all the same.
                for loras in sets[:2]:
                    await completed(serving.client, asked("small", loras))
            finally:
                for task in busy:
                    task.cancel()
                await asyncio.gather(*busy, return_exceptions=True)
            return refused.value

        error = serving(beyond)
        assert (error.code, error.param) == ("invalid_value", "loras")
        assert "2 sets of LoRAs are in use" in error.message
        for loras in ((("a", float("1e7")),), (("a", 1.0), ("a", 1.0))):
            with pytest.raises(ServerError) as refused:
                serving.generate(asked("small", loras))
            assert refused.value.code == "invalid_value"


def test_bundles_beyond_keep_take_turns(small_bundle: Path, small_v_bundle: Path) -> None:
    settings = WorkerSettings(
        bundles={"small": str(small_bundle), "other": str(small_v_bundle)}, threads=1, keep=1
    )
    pictures = {name: expected(Path(path), {}) for name, path in settings.bundles.items()}
    with serve(settings) as serving:
        models = serving.client.models
        assert [model.loaded for model in models.values()] == [True, False]
        assert models["other"].identity == read_manifest(small_v_bundle).identity
        for name in ("other", "small", "small", "other"):
            assert np.array_equal(pixels(serving.generate(asked(name))), pictures[name])

        async def mixed() -> dict[str, bool]:
            names = ["small", "other", "other", "small", "other", "small"] * 2
            results = await asyncio.gather(*(completed(serving.client, asked(name)) for name in names))
            for name, result in zip(names, results, strict=True):
                assert np.array_equal(pixels(result), pictures[name])
            # Numbers are sent twice a second.
            await asyncio.sleep(1.5)
            return {name: model.loaded for name, model in serving.client.models.items()}

        assert sum(serving(mixed).values()) == 1


def test_a_request_that_waits_for_room_may_be_given_up(small_bundle: Path, small_v_bundle: Path) -> None:
    settings = WorkerSettings(
        bundles={"small": str(small_bundle), "other": str(small_v_bundle)}, threads=1, keep=1
    )
    with serve(settings) as serving:

        async def give_up() -> None:
            client = serving.client
            running = asyncio.create_task(completed(client, asked("small", num_inference_steps=900)))
            while not client.stats.running:
                await asyncio.sleep(0.01)
            waiting = [asyncio.create_task(completed(client, asked("other"))) for _ in range(3)]
            await asyncio.sleep(0.1)
            for task in (*waiting[:2], running):
                task.cancel()
            await asyncio.gather(running, *waiting[:2], return_exceptions=True)
            await waiting[2]
            await completed(client, asked("small"))
            while client.stats.waiting + client.stats.running:
                await asyncio.sleep(0.01)

        serving(give_up)


def test_what_cannot_be_served_is_refused_at_start(
    small_bundle: Path, files: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\0" * 100)
    bundles = {"small": str(small_bundle)}
    for settings in (
        WorkerSettings(bundles=bundles, loras=files | {"broken": str(broken)}),
        WorkerSettings(bundles=bundles, embeddings={"<x>": str(broken)}),
    ):
        with pytest.raises(RequestError, match=r"broken\.safetensors"):
            ServedBundles(settings, Device("cpu"))
