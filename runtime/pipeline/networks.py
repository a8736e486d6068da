"""A bundle's networks on a device: what pipelines ask for pictures, texts and depths."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.backends import open_backend
from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Array, Device, Engine
from sd2rt.runtime.pipeline.result_cache import ResultCache
from sd2rt.runtime.pipeline.vae import Vae
from sd2rt.runtime.prompts.encoder import TextEncoder
from sd2rt.runtime.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

PartWeights = Mapping[PartName, Mapping[str, Array] | None]
"""Weights by part and PyTorch name; None stands for the bundle's own."""
_NOTHING: PartWeights = MappingProxyType({})

_CLOSED = "this pipeline is closed: open it again"

_AT_ONCE: tuple[PartName, ...] = ("text_encoder", "denoiser", "decoder")
"""What every image takes; the other parts are loaded where the first image that needs them is made."""


class Networks:
    """The parts of a bundle, loaded.

    Their buffers serve one thread at a time: :meth:`acquire` them, and :meth:`release` them.

    Args:
        tile: the longest side of latents that encoder and decoder work on at once.
        backend, precision: see :func:`sd2rt.engines.backends.open_backend`.
        weights: by part and PyTorch name, what to put in the place of the bundle's own.

    Raises:
        EngineError: a part cannot be loaded on the device.
        BundleError: no engine of the bundle fits, where a backend was named that needs one.
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
        backend: BackendName = "auto",
        precision: ComputePrecision | None = None,
        weights: PartWeights = _NOTHING,
    ) -> None:
        self.bundle, self.device, self.tile = bundle, device, tile
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._backend = open_backend(
            bundle,
            device,
            backend,
            needed=_AT_ONCE,
            threads=threads,
            cuda_graph=cuda_graph,
            precision=precision,
            profiles=self._profiles(),
        )
        # Loading is mostly ONNX Runtime's optimiser, on one core and outside Python's lock.
        with ThreadPoolExecutor(len(_AT_ONCE)) as pool:
            futures = {part: pool.submit(self._backend.open, part, weights.get(part)) for part in _AT_ONCE}
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
        self.recent = ResultCache()
        self.text = self._text_encoder(tokenizer)

    def _profiles(self) -> Path | None:
        """A folder for profiles of operators; None where they are not recorded."""
        return None

    def _text_encoder(self, tokenizer: Tokenizer) -> TextEncoder:
        return TextEncoder(self.bundle, self.engine("text_encoder"), tokenizer)

    @property
    def backend(self) -> str:
        """The name of what runs them."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """What they multiply in: ``fp32``, ``fp16`` or ``bf16``."""
        return self._backend.precision

    @property
    def max_batch(self) -> int | None:
        """Images of a denoiser call that the engines take, at most; None where there is no such bound."""
        return self._backend.max_batch

    @property
    def closed(self) -> bool:
        return self._engines is None

    def engine(self, part: PartName) -> Engine:
        """The engine of a part, loaded where it is not yet.

        Raises:
            RequestError: the networks are closed.
            EngineError: the part cannot be loaded on the device.
        """
        if self._engines is None:
            raise RequestError(_CLOSED)
        if part not in self._engines:
            self._engines[part] = self._backend.open(part)
        return self._engines[part]

    def replace_weights(self, weights: PartWeights) -> None:
        """Open parts anew with other weights; parts that are not named keep what they have.

        The old engines are closed when all of the new ones are open: for that long both take memory, and where one
        cannot be opened nothing has changed.

        Args:
            weights: by part and PyTorch name; None in the place of a part's gives it the bundle's own again.

        Raises:
            RequestError: the networks are closed.
            EngineError: a part cannot be loaded on the device, or has no such weights.
        """
        if self._engines is None:
            raise RequestError(_CLOSED)
        made: dict[PartName, Engine] = {}
        try:
            for part, values in weights.items():
                made[part] = self._backend.open(part, values, self._engines.get(part))
        except BaseException:
            for engine in made.values():
                engine.close()
            raise
        for part, engine in made.items():
            old = self._engines.get(part)
            self._engines[part] = engine
            if part == "text_encoder":
                self.text.replace_engine(engine)
            if old is not None:
                old.close()

    @cached_property
    def vae(self) -> Vae:
        return Vae(self.engine, self.bundle.manifest.latents, self.tile)

    def depth(self, image: Image) -> NDArray[np.float32]:
        """How near each point of an RGB image is, as its depth estimator sees it: [H', W'], unscaled.

        The image is squashed to the size that the estimator was trained on, whatever its shape.
        """
        from PIL.Image import Resampling

        config = self.bundle.manifest.depth_input
        assert config is not None
        squashed = image.resize(config.size, Resampling[config.resample.upper()])
        unit = np.asarray(squashed, np.float32) * np.float32(1 / 255)  # [H', W', 3]
        normal = (unit - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
        session = self.engine("depth_estimator").session({"B": 1})
        session.buffers["image"].write(normal.transpose(2, 0, 1)[None])
        session.launch()
        found: NDArray[Any] = session.buffers["depth"].read()[0]
        return found

    def acquire(self) -> None:
        """Have the engines' buffers to oneself until :meth:`release`; waits for other threads.

        Raises:
            RequestError: this thread has them already, or the networks are closed.
        """
        if self._owner == threading.get_ident():
            raise RequestError(
                "this pipeline is in the middle of another run: take its result or close it first"
            )
        self._lock.acquire()
        if self.closed:
            self._lock.release()
            raise RequestError(_CLOSED)
        self._owner = threading.get_ident()

    def release(self) -> None:
        """Let others have them."""
        self._owner = None
        self._lock.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Acquired within the ``with`` block; raises as :meth:`acquire`."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def close(self) -> None:
        """Free the engines; waits for other threads that have their buffers."""
        if self._owner == threading.get_ident():
            self._free()
        else:
            with self._lock:
                self._free()

    def _free(self) -> None:
        engines, self._engines = self._engines, None
        if engines is None:
            return
        for engine in engines.values():
            engine.close()
        self._backend.close()
