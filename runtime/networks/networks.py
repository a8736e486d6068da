"""A bundle's networks on a device: text encoder, denoiser, autoencoder and depth estimator."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.backends import open_backend, open_part
from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.model_kinds import EAGER_PARTS, PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Array, Device, Engine
from sd2rt.engines.preview import fit_preview
from sd2rt.runtime.networks.preview import Preview
from sd2rt.runtime.networks.result_cache import ResultCache
from sd2rt.runtime.networks.turns import Turns
from sd2rt.runtime.networks.vae import Vae
from sd2rt.runtime.prompts.encoder import TextEncoder
from sd2rt.runtime.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

CLOSED = "this pipeline is closed: open it again"

PartWeights = Mapping[PartName, Mapping[str, Array] | None]
"""Weights by part and PyTorch name; None for the bundle's own."""
_NO_WEIGHTS: PartWeights = MappingProxyType({})


class Networks:
    """Loaded parts of a bundle.

    One thread at a time may use their buffers, in a turn of :attr:`turns`.

    Args:
        tile: the longest side of latents that encoder and decoder process at once.
        backend, precision: see :func:`sd2rt.engines.backends.open_backend`.
        weights: replacements for the bundle's weights, by part and PyTorch name.
        turns: turns that several networks share; None for turns of their own.

    Raises:
        EngineError: a part cannot be loaded on the device.
        BundleError: the named backend needs an engine, and none of the bundle's fits.
        RequestError: the backend does not run on the device.
        MissingDependencyError: no backend for the device is installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int | None,
        cuda_graph: bool | None,
        tile: int,
        allow_cpu_fallback: bool = False,
        backend: BackendName = "auto",
        precision: ComputePrecision | None = None,
        weights: PartWeights = _NO_WEIGHTS,
        turns: Turns | None = None,
    ) -> None:
        self.bundle, self.device, self.tile = bundle, device, tile
        self.turns = Turns() if turns is None else turns
        self._backend = open_backend(
            bundle,
            device,
            backend,
            needed=EAGER_PARTS,
            threads=threads,
            cuda_graph=cuda_graph,
            allow_cpu_fallback=allow_cpu_fallback,
            precision=precision,
            profiles=self._profiles(),
        )
        # Parts load in parallel: most of the time is ONNX Runtime's optimiser, which uses one core and no GIL.
        with ThreadPoolExecutor(len(EAGER_PARTS)) as pool:
            futures = {part: pool.submit(self._open, part, weights.get(part)) for part in EAGER_PARTS}
            tokenizer = Tokenizer(bundle)
        try:
            self._engines: dict[PartName, Engine] | None = {
                part: future.result() for part, future in futures.items()
            }
        except BaseException:
            for future in futures.values():
                if future.exception() is None:
                    future.result().close()
            self._backend.close()
            raise
        self.results = ResultCache()
        self.text = self._text_encoder(tokenizer)

    def _open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        return open_part(self._backend, self.device, part, weights, like)

    def _profiles(self) -> Path | None:
        """Folder for operator profiles; None if none are recorded."""
        return None

    def _text_encoder(self, tokenizer: Tokenizer) -> TextEncoder:
        return TextEncoder(self.bundle, self.engine("text_encoder"), tokenizer, self.turns.turn)

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """Compute precision: ``fp32``, ``fp16`` or ``bf16``."""
        return self._backend.precision

    @property
    def max_batch(self) -> int | None:
        """The most images per denoiser call that the engines accept; None if unlimited."""
        return self._backend.max_batch

    @property
    def closed(self) -> bool:
        return self._engines is None

    def engine(self, part: PartName) -> Engine:
        """Get the engine of a part, loading it on first use.

        Raises:
            RequestError: the networks are closed.
            EngineError: the part cannot be loaded on the device.
        """
        if self._engines is None:
            raise RequestError(CLOSED)
        if part not in self._engines:
            self._engines[part] = self._open(part)
        return self._engines[part]

    def keep_sessions(self) -> None:
        """Keep the sessions that exist until the networks are closed, or a part's weights replaced."""
        for engine in (self._engines or {}).values():
            engine.keep_sessions()

    def replace_weights(self, weights: PartWeights) -> None:
        """Reopen parts with other weights; parts that are not named keep theirs.

        The old engines are closed once all new ones are open. Until then both take memory; if one cannot be opened,
        nothing changes.

        Args:
            weights: by part and PyTorch name; None for a part restores the bundle's own.

        Raises:
            RequestError: the networks are closed.
            EngineError: a part cannot be loaded on the device, or has no such weights.
        """
        if self._engines is None:
            raise RequestError(CLOSED)
        opened: dict[PartName, Engine] = {}
        try:
            for part, values in weights.items():
                opened[part] = self._open(part, values, self._engines.get(part))
        except BaseException:
            for engine in opened.values():
                engine.close()
            raise
        for part, engine in opened.items():
            old = self._engines.get(part)
            self._engines[part] = engine
            if part == "text_encoder":
                self.text.replace_engine(engine)
            if old is not None:
                old.close()

    @cached_property
    def vae(self) -> Vae:
        return Vae(self.engine, self.bundle.manifest.latents, self.tile, self.turns.turn)

    @cached_property
    def preview(self) -> Preview:
        """Map for rough pictures of latents: the manifest's, or in older bundles fitted at first use."""
        manifest = self.bundle.manifest
        if manifest.preview is not None:
            return Preview(manifest.preview)
        return Preview(fit_preview(self.vae.decode, manifest.latents.channels))

    def depth(self, image: Image) -> NDArray[np.float32]:
        """Estimate the depth of an RGB image: [H', W'], unscaled, larger values nearer.

        The image is resized to the estimator's training size, ignoring its aspect ratio.
        """
        from PIL.Image import Resampling

        config = self.bundle.manifest.depth_input
        assert config is not None
        resized = image.resize(config.size, Resampling[config.resample.upper()])
        unit = np.asarray(resized, np.float32) * np.float32(1 / 255)  # [H', W', 3]
        normalized = (unit - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
        with self.turns.turn():
            session = self.engine("depth_estimator").session({"B": 1})
            session.buffers["image"].write(normalized.transpose(2, 0, 1)[None])
            session.launch()
            depth: NDArray[Any] = session.buffers["depth"].read()[0]
        return depth

    def close(self) -> None:
        """Free the engines; no run may be in flight."""
        engines, self._engines = self._engines, None
        if engines is None:
            return
        self.text.close()
        for engine in engines.values():
            engine.close()
        self._backend.close()
        self.bundle.close()
