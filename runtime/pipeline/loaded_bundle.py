"""A bundle loaded on a device: its engines, textual inversions and LoRAs."""

from __future__ import annotations

import logging
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Device, Engine
from sd2rt.engines.lora.file import Lora, read_lora
from sd2rt.engines.lora.merge import changed_parts, merged_weights
from sd2rt.engines.printable import printable, repr_of, shown
from sd2rt.runtime.denoising.buckets import Buckets
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.networks.preview import Preview
from sd2rt.runtime.pipeline.batch_size import BatchSize
from sd2rt.runtime.pipeline.conditioning import size_of
from sd2rt.runtime.pipeline.gate import Gate
from sd2rt.runtime.pipeline.step_loop import StepLoop
from sd2rt.runtime.pipeline.warm_up import Advance, Traffic, WarmUp
from sd2rt.runtime.prompts.textual_inversion import Embedding, embeddings_of_lora, load_embedding
from sd2rt.runtime.provenance.safety import Safety
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.request.sampling import sampler_of
from sd2rt.runtime.scheduling.settings import Settings

_LOG = logging.getLogger(__name__)


class LoadedBundle:
    """Loaded networks with their textual inversions and LoRAs; a context manager that owns the engines.

    Args:
        batch_size: the most images denoised in one call, and measured costs of such calls.
        loras: LoRAs already merged into the networks' weights.
    """

    safety: Safety | None = None
    """Check of finished images; None for none."""

    def __init__(self, networks: Networks, batch_size: BatchSize, loras: Sequence[Lora] = ()) -> None:
        self.bundle = networks.bundle
        self.tile = networks.tile
        self._networks = networks
        self._gate = Gate()
        self._loras = tuple(loras)
        for lora in loras:
            for embedding in embeddings_of_lora(lora):
                networks.text.add_embedding(embedding)
        self._buckets: Buckets | None = None
        if networks.device.kind == "cuda":
            self._buckets = Buckets(batch_size.group, lambda dims: networks.engine("denoiser").takes(dims))
        self._traffic: Traffic | None = None
        self._set_batch_size(batch_size)

    def sampler_of(self, request: Request[Any]) -> SamplerConfig:
        """Get the sampler that a request will use."""
        return sampler_of(request, self.manifest)

    def size_of(self, request: Request[Any]) -> tuple[int, int]:
        """Compute width and height, in pixels, of a request's images."""
        return size_of(self.manifest, request)

    @property
    def max_batch(self) -> int:
        """The most images denoised in one call; set it while no run is in flight."""
        return self._batch_size.group

    @max_batch.setter
    def max_batch(self, max_batch: int) -> None:
        self._set_batch_size(BatchSize.choose(self._networks, max_batch))

    def _set_batch_size(self, batch_size: BatchSize) -> None:
        self._batch_size = batch_size
        if self._buckets is not None:
            self._buckets.limit = batch_size.group
        settings = Settings(max_batch=batch_size.shared, group_batch=batch_size.group)
        self._loop = StepLoop(self._networks, settings, self._buckets)
        self._loop.calibrate(batch_size.lanes(self._networks, self._buckets))

    @property
    def batch_size(self) -> BatchSize:
        """Images of one run, and of different runs, in a call, and measured costs."""
        return self._batch_size

    def warm_up(
        self,
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        prompts: int = 1,
        chunks: int = 1,
        image_inputs: bool = False,
        progress: Advance | None = None,
        within: Callable[[Callable[[], None]], None] = operator.call,
    ) -> None:
        """Launch what requests will run, so that none waits for it; runs in flight end first, and new ones wait.

        On a GPU, denoiser calls are padded up to some sizes. All of them are allocated, captured as graphs, measured
        and kept: later calls then neither capture nor allocate. Requests beyond the arguments still work, but the
        first of their kind take longer. After a change of LoRAs, it is done again. With ONNX Runtime on a GPU it is
        of use to the calling thread only. On a CPU, sizes are exact, and one call of each part is made.

        Args:
            sizes: width and height of images in pixels; None for the bundle's first native size.
            prompts: the most prompts composed in one image with ``AND``.
            chunks: the longest prompt, in chunks of 77 tokens.
            image_inputs: True for requests with input images too.
            progress: called after each launch with the number of launches made and of all; to interrupt, raise an
                exception. What was launched by then is ready.
            within: runs the function that it is given in the thread that will make the calls.

        Raises:
            RequestError: an argument is out of range, the pipeline is closed, or this thread is in the middle of a
                run.
            EngineError: the device failed or ran out of memory.
        """
        traffic = Traffic.of(self.manifest, sizes, prompts, chunks, image_inputs)
        with self._gate.change():
            within(lambda: self._warm_up(traffic, progress))

    def _warm_up(self, traffic: Traffic, progress: Advance | None = None) -> None:
        self._traffic = traffic
        with self._networks.turns.turn():
            self._loop.stepper.reset()
        WarmUp(self._networks, self._buckets, traffic).run(progress)
        self._loop.calibrate(self._batch_size.lanes(self._networks, self._buckets))

    @property
    def device(self) -> Device:
        """Device that the engines run on."""
        return self._networks.device

    @property
    def backend(self) -> str:
        """Name of the backend: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``."""
        return self._networks.backend

    @property
    def precision(self) -> str:
        """Compute precision of the networks: ``fp32``, ``fp16`` or ``bf16``."""
        return self._networks.precision

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def preview(self) -> Preview:
        """Map for rough pictures of latents; older bundles take four small decodes at first use."""
        return self._networks.preview

    @property
    def step_loop(self) -> StepLoop:
        """Loop over the calls of all runs."""
        return self._loop

    def require_no_run_of(self, user: object) -> None:
        """Raise RequestError if this thread or task is in the middle of a run."""
        self._gate.require_no_run_of(user)

    def close(self) -> None:
        """Wait for runs in other threads, then free the engines; the pipeline cannot be used afterwards."""
        with self._gate.closing(), self._networks.turns.turn():
            # The sessions of the last call hold the engines.
            self._loop.stepper.reset()
            self._networks.close()
        _LOG.info("closed %s", self.bundle.path)

    def engine(self, part: PartName) -> Engine:
        """Get the engine of a part.

        Raises:
            RequestError: the pipeline is closed.
        """
        with self._networks.turns.turn():
            return self._networks.engine(part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decode(self, latents: Latents) -> NDArray[np.float32]:
        """Decode latents [C, h, w], as a sampler returns them, to an image [3, H, W], nominally in [-1, 1].

        Waits for a step or another call that is under way, not for a run's end.

        Raises:
            RequestError: the pipeline is closed.
            EngineError: the device failed or ran out of memory.
        """
        with self._networks.turns.turn():
            return self._networks.vae.decode(latents)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Wait for runs in flight, and hold up new ones and other uses while the networks are changed."""
        with self._gate.change(), self._networks.turns.turn():
            self._loop.stepper.reset()
            yield

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """Loaded textual inversions, whose names prompts can use."""
        return self._networks.text.embeddings

    @property
    def unused_embeddings(self) -> tuple[Embedding, ...]:
        """Those that no prompt has named since they were loaded: they had no effect."""
        return self._networks.text.unused_embeddings

    def count_tokens(self, prompt: str) -> int:
        """Return the number of a prompt's tokens, without start and end; 75 fit into the text encoder."""
        return self._networks.text.count_tokens(prompt)

    def load_embedding(
        self,
        source: str | os.PathLike[str] | Mapping[str, Any],
        token: str | None = None,
        *,
        allow_pickle: bool = False,
    ) -> Embedding:
        """Load a textual inversion: prompts then use its vectors wherever they contain its token.

        Args:
            source: a ``.safetensors``, ``.pt`` or ``.bin`` file, or a state dict, in diffusers' or AUTOMATIC1111's
                layout.
            token: its name in prompts; None for the name stored in the file, or the file's name if there is none. In
                prompts of the syntax ``a1111``, None is the file's name in either case.
            allow_pickle: allow ``.pt`` and ``.bin``; only tensors are unpickled.

        Raises:
            RequestError: it cannot be read, was not made for Stable Diffusion 2, or its token is in use.
        """
        embedding = load_embedding(source, token, allow_pickle=allow_pickle)
        self.add_embedding(embedding)
        return embedding

    def add_embedding(self, embedding: Embedding) -> None:
        """Add an embedding that is already read; raises RequestError if it does not fit the bundle."""
        with self._change():
            self._networks.text.add_embedding(embedding)
        _LOG.info("added the embedding %s", printable(embedding.token))

    def unload_embedding(self, token: str) -> None:
        """Remove a textual inversion by its token; raises RequestError if none of that name is loaded."""
        with self._change():
            self._networks.text.remove_embedding(token)
        _LOG.info("removed the embedding %s", printable(token))

    @property
    def loras(self) -> tuple[Lora, ...]:
        """Active LoRAs, in the order in which they were loaded."""
        return self._loras

    def load_lora(
        self,
        source: str | os.PathLike[str],
        scale: float = 1.0,
        name: str | None = None,
        *,
        text_scale: float | None = None,
        allow_pickle: bool = False,
    ) -> Lora:
        """Add a LoRA to those already loaded.

        The parts that it changes are reopened with the LoRA merged into their weights, so images take no longer than
        without it. If that fails, nothing changes.

        Args:
            source: a ``.safetensors`` file in the layout of kohya, LyCORIS, diffusers, PEFT or ComfyUI.
            scale: strength of its changes; 0 disables it, a negative value inverts it.
            name: its name for :meth:`unload_lora`; None for the file's name.
            text_scale: strength of its changes of the text encoder; None for ``scale``.
            allow_pickle: read a ``.bin``, ``.pt`` or ``.pth`` file, of which only tensors are read.

        Raises:
            RequestError: it cannot be read, was made for another model, is of an unsupported kind, or its name is
                in use.
            EngineError: not enough memory to hold the new engines beside the old ones.
        """
        lora = read_lora(source, scale=scale, text_scale=text_scale, name=name, allow_pickle=allow_pickle)
        with self._change():
            self._change_loras((*self._loras, lora))
        return lora

    def unload_lora(self, name: str | None = None) -> None:
        """Remove the LoRA of this name, or all LoRAs if no name is given.

        Raises:
            RequestError: no LoRA of that name is loaded.
            EngineError: not enough memory to hold the new engines beside the old ones.
        """
        with self._change():
            remaining = tuple(lora for lora in self._loras if name is not None and lora.name != name)
            if name is not None and len(remaining) == len(self._loras):
                loaded = ", ".join(lora.name for lora in self._loras) or "none"
                raise RequestError(f"no LoRA is named {shown(repr_of(name))}; loaded: {loaded}")
            self._change_loras(remaining)

    def _change_loras(self, loras: tuple[Lora, ...]) -> None:
        start = time.monotonic()
        merged = merged_weights(self.bundle, loras)
        changed = changed_parts(self._loras, loras, merged)
        text = self._networks.text
        with ExitStack() as undo:
            for lora in loras:
                for embedding in () if lora in self._loras else embeddings_of_lora(lora):
                    text.add_embedding(embedding)
                    undo.callback(text.remove_embedding, embedding.token)
            self._networks.replace_weights(changed)
            undo.pop_all()
        for lora in self._loras:
            for token in () if lora in loras else lora.embeddings:
                # It may have been unloaded by its own name.
                if any(embedding.token == token for embedding in text.embeddings):
                    text.remove_embedding(token)
        self._loras = loras
        active = ", ".join(f"{printable(lora.name)} at {lora.scales}" for lora in loras) or "none"
        _LOG.info("active LoRAs: %s; changed in %.2f s", active, time.monotonic() - start)
        if changed and self._buckets is not None:
            self._buckets.forget()
            if self._traffic is not None:
                self._warm_up(self._traffic)
