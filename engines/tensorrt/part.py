"""Run a part of a bundle with the engines that the bundle has for it."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineEntry
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.engines.interface import NO_CARRY, Array, Closing, Session
from sd2rt.engines.tensorrt.build_command import build_command
from sd2rt.engines.tensorrt.engine import TensorRtEngine
from sd2rt.engines.tensorrt.lora_engines import rebuilt_engine
from sd2rt.engines.weights.initializers import Weights

_LOG = logging.getLogger(__name__)


class TensorRtPart(Closing):
    """Presents all engines of a part as one, and loads each when a size that it takes is first requested.

    Args:
        name: the part's name.
        part: the part's manifest entry.
        entries: the engines that fit the backend and the GPU.
        bundle: the bundle of the engines and of the graph whose weights they may be given.
        device: the device to run on; shared, must outlive the part.
        module: the backend; see :func:`sd2rt.engines.tensorrt.packages.load_module`.
        pixels: image pixels per latent row or column.
        cuda_graph: capture and replay CUDA graphs; see :class:`sd2rt.engines.cuda.session.CudaSession`.
        weights: replacements for the engines' weights, by PyTorch name. A refittable engine is refitted; otherwise a
            copy with the weights is compiled and cached.
    """

    def __init__(
        self,
        name: PartName,
        part: Part,
        entries: Sequence[EngineEntry],
        bundle: Bundle,
        device: CudaDevice,
        module: Any,
        *,
        pixels: int,
        cuda_graph: bool | None,
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        self.part = part
        self._name, self._entries, self._bundle, self._device = name, tuple(entries), bundle, device
        self._module, self._pixels, self._cuda_graph = module, pixels, cuda_graph
        self._weights = weights
        self._engines: dict[str, TensorRtEngine] | None = {}

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """Return the session for these sizes; see :class:`sd2rt.engines.interface.Engine`.

        Raises:
            BundleError: no engine was built for these sizes, or its file differs from the manifest.
            EngineError: the GPU has too little memory, or the part is closed.
        """
        if self._engines is None:
            raise EngineError(f"{self._name} on {self._device} is closed: open it again")
        entry = self._choose(dims)
        engine = self._engines.get(entry.key)
        if engine is None:
            engine = self._engines[entry.key] = self._open(entry)
        return engine.session(dims, carry, watch)

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Return whether the part has an engine that was built for these sizes."""
        return any(profile.takes(dims) for entry in self._entries for profile in entry.profiles)

    def keep_sessions(self) -> None:
        """See :class:`sd2rt.engines.interface.Engine`."""
        for engine in (self._engines or {}).values():
            engine.keep_sessions()

    def load_as(self, other: TensorRtPart) -> None:
        """Load the same engines as another part has loaded.

        Raises:
            BuildError: an engine with this part's weights cannot be compiled.
            EngineError: the GPU has too little memory.
        """
        assert self._engines is not None
        for entry in self._entries:
            if entry.key in (other._engines or ()) and entry.key not in self._engines:
                self._engines[entry.key] = self._open(entry)

    def _choose(self, dims: Mapping[str, int]) -> EngineEntry:
        """Choose the engine with the narrowest profile that takes these sizes: fixed sizes run fastest."""
        fitting = [
            (profile.width, index)
            for index, entry in enumerate(self._entries)
            for profile in entry.profiles
            if profile.takes(dims)
        ]
        if not fitting:
            backend, labels = self._entries[0].backend, ", ".join(entry.label for entry in self._entries)
            sizes = ", ".join(f"{symbol} {size}" for symbol, size in dims.items())
            command = build_command(self._bundle.path, backend, self._name, dims, self._pixels)
            raise BundleError(
                f"{self._bundle.path} has no {self._name} engine for {sizes}, only for {labels}: run '{command}'"
            )
        return self._entries[min(fitting)[1]]

    def _refits(self, entry: EngineEntry, weights: Mapping[str, Array]) -> bool:
        """Return whether an engine takes these weights: biases and norms are not refitted individually."""
        if entry.options.refit != "individual":
            return entry.options.refit == "all"
        shapes = Weights.in_bundle(self._bundle, self.part).shapes()
        return all(len(shapes[name]) >= 2 for name in weights)

    def _open(self, entry: EngineEntry) -> TensorRtEngine:
        start, label = time.monotonic(), entry.label
        folder, weights = self._bundle.path, self._weights
        refit = weights is not None and self._refits(entry, weights)
        if weights is not None and not refit:
            folder, entry = self._rebuilt(entry, weights)
        engine = TensorRtEngine(
            self.part,
            entry,
            folder,
            self._device,
            self._module,
            pixels=self._pixels,
            cuda_graph=self._cuda_graph,
        )
        if refit or entry.options.refit == "identical":
            self._bundle.load(
                self.part.files,
                lambda opened: engine.refit(opened / self.part.onnx, weights),
            )
        _LOG.info("loaded the engine %s of %s in %.2f s", label, self._name, time.monotonic() - start)
        return engine

    def _rebuilt(self, entry: EngineEntry, weights: Mapping[str, Array]) -> tuple[Path, EngineEntry]:
        return self._bundle.load(
            self.part.files,
            lambda opened: rebuilt_engine(opened, self._name, self.part, entry, weights),
            # Compiled from files that changed meanwhile, it must not stay in the cache.
            lambda made: shutil.rmtree(made[0], ignore_errors=True),
        )

    def close(self) -> None:
        """Free the engines and their sessions."""
        engines, self._engines = self._engines or {}, None
        for engine in engines.values():
            engine.close()
