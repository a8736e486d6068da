"""A bundle on a device, without the calls that make images: its engines, its textual inversions and its LoRAs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.pipeline.networks import Networks
from sd2rt.runtime.prompts.textual_inversion import Embedding, load_embedding


class LoadedBundle:
    """Networks, and what has been loaded into them; a context manager that owns the engines.

    Args:
        max_batch: images denoised in one call at most.
        loras: those whose weights the networks were opened with.
    """

    def __init__(self, networks: Networks, max_batch: int, loras: Sequence[Lora] = ()) -> None:
        self.bundle = networks.bundle
        self.tile = networks.tile
        self.max_batch = max_batch
        self._networks = networks
        self._loras = tuple(loras)

    @property
    def device(self) -> Device:
        """The device that the engines run on."""
        return self._networks.device

    @property
    def backend(self) -> str:
        """What runs the networks: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``."""
        return self._networks.backend

    @property
    def precision(self) -> str:
        """What the networks multiply in: ``fp32``, ``fp16`` or ``bf16``."""
        return self._networks.precision

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def close(self) -> None:
        """Free the engines; the pipeline cannot be used afterwards. Waits for runs of other threads."""
        self._networks.close()

    def engine(self, part: PartName) -> Engine:
        """The engine of a part.

        Raises:
            RequestError: the pipeline is closed.
        """
        return self._networks.engine(part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decode(self, latents: Latents) -> NDArray[np.float32]:
        """Latents [C, h, w], as the sampler leaves them, to an image [3, H, W], nominally in [-1, 1]."""
        return self._networks.vae.decode(latents)

    def acquire(self) -> None:
        """Have the engines' buffers to oneself until :meth:`release`; waits for other threads.

        Raises:
            RequestError: this thread has them already, or the pipeline is closed.
        """
        self._networks.acquire()

    def release(self) -> None:
        """Let others have them."""
        self._networks.release()

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The textual inversions that prompts can name."""
        return self._networks.text.embeddings

    def load_embedding(
        self,
        source: str | os.PathLike[str] | Mapping[str, Any],
        token: str | None = None,
        *,
        allow_pickle: bool = False,
    ) -> Embedding:
        """Let a name in prompts stand for the vectors of a textual inversion.

        Args:
            source: a ``.safetensors`` file, a ``.pt`` or ``.bin`` one, or a state dict; in diffusers' layout or
                AUTOMATIC1111's.
            token: the name; None for the one that is given there, or else the file's own.
            allow_pickle: read ``.pt`` and ``.bin``, of which nothing but tensors is taken.

        Raises:
            RequestError: it cannot be read, was not made for Stable Diffusion 2, or its name is taken.
        """
        embedding = load_embedding(source, token, allow_pickle=allow_pickle)
        self.add_embedding(embedding)
        return embedding

    def add_embedding(self, embedding: Embedding) -> None:
        """The same for one that has been read. Raises RequestError where it does not fit."""
        with self._networks.exclusive():
            self._networks.text.add_embedding(embedding)

    def unload_embedding(self, token: str) -> None:
        """Forget a name that :meth:`load_embedding` brought. Raises RequestError where there is none."""
        with self._networks.exclusive():
            self._networks.text.remove_embedding(token)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The LoRAs that images are made with, in the order in which they were loaded."""
        return self._loras

    def load_lora(self, source: str | os.PathLike[str], scale: float = 1.0, name: str | None = None) -> Lora:
        """Make images with a LoRA from here on, beside those that are loaded.

        The parts that it changes are opened anew, with its changes added to their weights: images take as long as
        without it. Where that fails, all stays as it was.

        Args:
            source: a ``.safetensors`` file in kohya's layout, diffusers' or PEFT's.
            scale: how strongly; 0 is not at all, and below it the other way.
            name: for :meth:`unload_lora`; None for the file's own.

        Raises:
            RequestError: it cannot be read, was not made for this model, is of another kind, or its name is taken.
            EngineError: there is no memory for the new engines beside the old ones.
        """
        lora = read_lora(source, scale=scale, name=name)
        with self._networks.exclusive():
            self._change_loras((*self._loras, lora))
        return lora

    def unload_lora(self, name: str | None = None) -> None:
        """Make images without a LoRA, or without any where no name is given.

        Raises:
            RequestError: none of that name is loaded.
            EngineError: there is no memory for the new engines beside the old ones.
        """
        with self._networks.exclusive():
            kept = tuple(lora for lora in self._loras if name is not None and lora.name != name)
            if name is not None and len(kept) == len(self._loras):
                known = ", ".join(lora.name for lora in self._loras) or "none"
                raise RequestError(f"no LoRA is named {name!r}: {known} is loaded")
            self._change_loras(kept)

    def _change_loras(self, loras: tuple[Lora, ...]) -> None:
        merged = merged_weights(self.bundle, loras)
        self._networks.replace_weights(changed_parts(self._loras, loras, merged))
        self._loras = loras
