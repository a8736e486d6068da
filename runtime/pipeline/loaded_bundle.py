"""A bundle loaded on a device: its engines, textual inversions and LoRAs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Device, Engine
from sd2rt.engines.lora.file import Lora, read_lora
from sd2rt.engines.lora.merge import changed_parts, merged_weights
from sd2rt.engines.printable import printable, repr_of, shown
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.networks.preview import Preview
from sd2rt.runtime.pipeline.gate import Gate
from sd2rt.runtime.pipeline.step_loop import StepLoop
from sd2rt.runtime.prompts.textual_inversion import Embedding, load_embedding
from sd2rt.runtime.scheduling.settings import Settings

_LOG = logging.getLogger(__name__)


class LoadedBundle:
    """Loaded networks with their textual inversions and LoRAs; a context manager that owns the engines.

    Args:
        max_batch: the most images denoised in one call.
        loras: LoRAs already merged into the networks' weights.
    """

    def __init__(self, networks: Networks, max_batch: int, loras: Sequence[Lora] = ()) -> None:
        self.bundle = networks.bundle
        self.tile = networks.tile
        self._networks = networks
        self._gate = Gate()
        self.max_batch = max_batch
        self._loras = tuple(loras)

    @property
    def max_batch(self) -> int:
        """The most images denoised in one call; set it while no run is in flight."""
        return self._max_batch

    @max_batch.setter
    def max_batch(self, max_batch: int) -> None:
        self._max_batch = max_batch
        # On a CPU, images of different runs in one call save no time, and would differ by rounding.
        shared = max_batch if self.device.kind == "cuda" else 1
        self._loop = StepLoop(self._networks, Settings(max_batch=shared, group_batch=max_batch))

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
            token: its name in prompts; None for the name stored in the file, or the file's name if there is none.
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

    def load_lora(self, source: str | os.PathLike[str], scale: float = 1.0, name: str | None = None) -> Lora:
        """Add a LoRA to those already loaded.

        The parts that it changes are reopened with the LoRA merged into their weights, so images take no longer than
        without it. If that fails, nothing changes.

        Args:
            source: a ``.safetensors`` file in kohya's, diffusers' or PEFT's layout.
            scale: strength of its changes; 0 disables it, a negative value inverts it.
            name: its name for :meth:`unload_lora`; None for the file's name.

        Raises:
            RequestError: it cannot be read, was made for another model, is of an unsupported kind, or its name is
                in use.
            EngineError: not enough memory to hold the new engines beside the old ones.
        """
        lora = read_lora(source, scale=scale, name=name)
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
        self._networks.replace_weights(changed_parts(self._loras, loras, merged))
        self._loras = loras
        active = ", ".join(f"{printable(lora.name)} at {lora.scale:g}" for lora in loras) or "none"
        _LOG.info("active LoRAs: %s; changed in %.2f s", active, time.monotonic() - start)
