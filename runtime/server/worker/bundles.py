"""Bundles and LoRA sets of a worker: loaded at start or at first use, closed when others need their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.reader import locate
from sd2rt.engines.bundle.sizes import TILE
from sd2rt.engines.errors import OutOfMemoryError
from sd2rt.engines.interface import Device
from sd2rt.engines.lora.file import read_lora
from sd2rt.runtime.networks.turns import Turns
from sd2rt.runtime.pipeline.async_pipeline import AsyncPipeline
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.prompts.textual_inversion import Embedding, check_embedding, load_embedding
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import LoraSet
from sd2rt.runtime.server.worker.memory import available_bytes, in_units, needed_bytes
from sd2rt.runtime.server.worker.warm_up import warm_up
from sd2rt.runtime.server.worker_settings import WorkerSettings

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Loaded:
    """A bundle with a set of LoRAs that is loaded, or being loaded."""

    model: str
    loras: LoraSet
    users: int = 0
    last_used: float = 0.0
    opening: asyncio.Task[AsyncPipeline] = field(init=False)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class ServedBundles:
    """Pipelines of one device, which take turns at it call by call. Use it from one event loop.

    Args:
        settings: bundles, LoRAs and limits.
        device: where they run.

    Raises:
        BundleError: a bundle is missing or damaged.
        RequestError: a LoRA or an embedding cannot be read, or does not fit a bundle.
        OutOfMemoryError: the bundles that shall be loaded at once do not fit on the device.
    """

    def __init__(self, settings: WorkerSettings, device: Device) -> None:
        self._settings, self.device = settings, device
        self._turns = Turns()
        self.manifests: dict[str, Manifest] = {
            name: read_manifest(locate(path)) for name, path in settings.bundles.items()
        }
        self.needed = {name: needed_bytes(manifest) for name, manifest in self.manifests.items()}
        self._check_memory()
        self._embeddings: list[Embedding] = [
            load_embedding(file, token, allow_pickle=False) for token, file in settings.embeddings.items()
        ]
        for manifest in self.manifests.values():
            for embedding in self._embeddings:
                check_embedding(embedding, manifest)
        for name, file in settings.loras.items():
            read_lora(file, name=name)
        self._loaded: dict[tuple[str, LoraSet], _Loaded] = {}
        self._changing = asyncio.Lock()
        self._open: set[_Loaded] = set()
        """Those that have engines, including ones that are about to be closed."""

    @property
    def keep(self) -> int:
        """Bundles that are loaded at once, beside LoRA sets."""
        count = len(self._settings.bundles)
        return count if self._settings.keep is None else min(self._settings.keep, count)

    @property
    def embeddings(self) -> tuple[tuple[str, int, int], ...]:
        """Token, number of vectors and their length of each textual inversion."""
        return tuple((each.token, *each.vectors.shape) for each in self._embeddings)

    @property
    def loaded(self) -> set[str]:
        """Names of bundles that are loaded."""
        return {each.model for each in self._open if not each.loras}

    @property
    def pipelines(self) -> list[Pipeline]:
        """Pipelines that are loaded."""
        return [each.opening.result().pipeline for each in self._open]

    def others(self, pipeline: Pipeline) -> list[Pipeline]:
        """The other pipelines, which share the device with this one."""
        return [each for each in self.pipelines if each is not pipeline]

    def created(self, model: str) -> int:
        """Unix time at which a bundle was written."""
        return int((locate(self._settings.bundles[model]) / "bundle.json").stat().st_mtime)

    async def load_first(self) -> None:
        """Load the bundles that are kept from the start on, in the order in which they are named.

        Raises:
            Sd2rtError: one cannot be loaded.
        """
        for model in list(self._settings.bundles)[: self.keep]:
            async with self.use(model, ()):
                pass

    @asynccontextmanager
    async def use(self, model: str, loras: LoraSet) -> AsyncIterator[AsyncPipeline]:
        """Have a bundle with a set of LoRAs loaded within an ``async with`` block.

        Raises:
            ServerError: the bundle is not served, a LoRA is not known, or no more sets can be loaded.
            Sd2rtError: it cannot be loaded.
        """
        loaded = self._loaded.get((model, loras))
        if loaded is None:
            self._check(model, loras)
            loaded = _Loaded(model, loras)
            self._loaded[model, loras] = loaded
            loaded.opening = asyncio.create_task(self._load(loaded))
        loaded.users += 1
        loaded.idle.clear()
        try:
            # Loading goes on if the request is given up: the next one may need it.
            yield await asyncio.shield(loaded.opening)
        finally:
            loaded.users -= 1
            loaded.last_used = monotonic()
            if not loaded.users:
                loaded.idle.set()

    async def close(self) -> None:
        """Close all pipelines, once no request uses them."""
        for loaded in tuple(self._open):
            await self._unload(loaded)

    def _check(self, model: str, loras: LoraSet) -> None:
        if model not in self._settings.bundles:
            names = ", ".join(self._settings.bundles)
            raise ServerError(
                "model_not_found", f"no model is named {model[:60]!r}: use {names}", param="model"
            )
        known = self._settings.loras
        for name, *_ in loras:
            if name not in known:
                served = ", ".join(known) or "none"
                raise ServerError(
                    "invalid_value", f"no LoRA is named {name[:60]!r}: served are {served}", param="loras"
                )
        if not loras:
            return
        busy = [each for each in self._loaded.values() if each.loras and each.users]
        if len(busy) >= self._settings.lora_sets:
            raise ServerError(
                "invalid_value",
                f"{len(busy)} sets of LoRAs are in use, and {self._settings.lora_sets} can be loaded at once: "
                "use one of them, or try again later",
                param="loras",
            )

    async def _load(self, loaded: _Loaded) -> AsyncPipeline:
        try:
            async with self._changing:
                await self._make_room(bool(loaded.loras))
                began = monotonic()
                pipeline = await AsyncPipeline.open(
                    self._settings.bundles[loaded.model],
                    **await asyncio.to_thread(self._options, loaded.loras),
                )
                try:
                    for embedding in self._embeddings:
                        pipeline.pipeline.add_embedding(embedding)
                    await warm_up(pipeline)
                except BaseException:
                    await pipeline.close()
                    raise
                self._open.add(loaded)
        except BaseException:
            self._forget(loaded)
            raise
        _LOG.info("loaded %s%s in %.1f s", loaded.model, _shown(loaded.loras), monotonic() - began)
        return pipeline

    async def _make_room(self, for_loras: bool) -> None:
        limit = self._settings.lora_sets if for_loras else self.keep
        while len(kind := [each for each in self._open if bool(each.loras) is for_loras]) >= limit:
            # One that is in use is taken only if all are: requests that come later wait behind.
            await self._unload(min(kind, key=lambda each: (each.users > 0, each.last_used)))

    async def _unload(self, loaded: _Loaded) -> None:
        self._forget(loaded)
        if loaded.users:
            await loaded.idle.wait()
        await loaded.opening.result().close()
        self._open.discard(loaded)
        _LOG.info("closed %s%s", loaded.model, _shown(loaded.loras))

    def _forget(self, loaded: _Loaded) -> None:
        """Let no further request use it."""
        if self._loaded.get((loaded.model, loaded.loras)) is loaded:
            del self._loaded[loaded.model, loaded.loras]

    def _options(self, loras: LoraSet) -> dict[str, Any]:
        settings = self._settings
        return {
            "device": str(self.device),
            "threads": settings.threads,
            "max_batch": settings.max_batch,
            "cuda_graph": settings.cuda_graph,
            "allow_cpu_fallback": settings.allow_cpu_fallback,
            "tile": TILE if settings.tile is None else settings.tile,
            "backend": settings.backend,
            "precision": settings.precision,
            "loras": [
                read_lora(settings.loras[name], scale=scales[0], text_scale=scales[-1], name=name)
                for name, *scales in loras
            ],
            "turns": self._turns,
        }

    def _check_memory(self) -> None:
        """Check that the largest bundles that may be loaded at once fit; log what each needs."""
        for name, size in self.needed.items():
            _LOG.info("%s needs about %s", name, in_units(size))
        room = self._settings.memory_bytes
        if room is None:
            room = available_bytes(self.device)
        if room is None:
            return
        largest = sorted(self.needed.values(), reverse=True)
        sets = self._settings.lora_sets if self._settings.loras else 0
        needed = sum(largest[: self.keep]) + sets * largest[0]
        if needed > room:
            each = ", ".join(f"{name} {in_units(size)}" for name, size in self.needed.items())
            raise OutOfMemoryError(
                f"{self.device} has {in_units(room)} of memory, and {self.keep} bundles with {sets} LoRA sets need "
                f"{in_units(needed)} ({each}): serve fewer bundles, or keep fewer loaded with --keep"
            )


def _shown(loras: LoraSet) -> str:
    return "".join(
        f" with {':'.join([name, *(f'{scale:g}' for scale in scales)])}" for name, *scales in loras
    )
