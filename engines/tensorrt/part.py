"""A part of a bundle on a GPU, by the engines that the bundle has of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineEntry
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.engines.interface import NO_CARRY, Array, Closing, Session
from sd2rt.engines.tensorrt.build_command import build_command
from sd2rt.engines.tensorrt.engine import TensorRtEngine
from sd2rt.engines.tensorrt.lora_engines import rebuilt_engine


class TensorRtPart(Closing):
    """A part's engines as one: each is loaded when sizes that it takes are first asked for.

    Args:
        name: of the part.
        part: the manifest's entry.
        entries: the engines that fit the backend and the GPU.
        bundle: the folder that they are in.
        device: where to run; it is shared, and outlives this.
        module: the backend; see :func:`sd2rt.engines.tensorrt.packages.load_module`.
        pixels: for each of the latents' ``h`` and ``w``.
        cuda_graph: capture each session's launch as a CUDA graph and replay it; None where it may go on without.
        weights: by PyTorch name, what to put in the place of the engines' own. An engine that was built to be
            refitted takes them; of another one a copy with them is compiled, and kept for the next time.
    """

    def __init__(
        self,
        name: PartName,
        part: Part,
        entries: Sequence[EngineEntry],
        bundle: Path,
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
        """The session for these sizes; see :class:`sd2rt.engines.interface.Engine`.

        Raises:
            BundleError: no engine was built for these sizes, or the one that was is not what the manifest says.
            EngineError: there is no memory for it, or the part is closed.
        """
        if self._engines is None:
            raise EngineError(f"{self._name} on {self._device} is closed: open it again")
        entry = self._choose(dims)
        engine = self._engines.get(entry.key)
        if engine is None:
            engine = self._engines[entry.key] = self._open(entry)
        return engine.session(dims, carry, watch)

    def load_as(self, other: TensorRtPart) -> None:
        """Load the engines that another one has loaded.

        Raises:
            BuildError: one with these weights cannot be compiled.
            EngineError: there is no memory for it.
        """
        assert self._engines is not None
        for entry in self._entries:
            if entry.key in (other._engines or ()) and entry.key not in self._engines:
                self._engines[entry.key] = self._open(entry)

    def _choose(self, dims: Mapping[str, int]) -> EngineEntry:
        """The engine with the narrowest profile that takes these sizes: what is fixed is fastest."""
        taking = [
            (profile.width, index)
            for index, entry in enumerate(self._entries)
            for profile in entry.profiles
            if profile.takes(dims)
        ]
        if not taking:
            backend, found = self._entries[0].backend, ", ".join(entry.label for entry in self._entries)
            asked = ", ".join(f"{symbol} {size}" for symbol, size in dims.items())
            command = build_command(self._bundle, backend, self._name, dims, self._pixels)
            raise BundleError(
                f"{self._bundle} has no engine of its {self._name} for {asked}, but for {found}: run '{command}'"
            )
        return self._entries[min(taking)[1]]

    def _open(self, entry: EngineEntry) -> TensorRtEngine:
        folder, weights = self._bundle, self._weights
        refit = weights is not None and entry.options.refit in ("all", "individual")
        if weights is not None and not refit:
            folder, entry = rebuilt_engine(self._bundle, self._name, self.part, entry, weights)
        engine = TensorRtEngine(
            self.part,
            entry,
            folder,
            self._device,
            self._module,
            pixels=self._pixels,
            cuda_graph=self._cuda_graph,
        )
        if weights is not None and refit:
            engine.refit(self._bundle / self.part.onnx, weights)
        elif entry.options.refit == "identical":
            engine.refit(self._bundle / self.part.onnx, None)
        return engine

    def close(self) -> None:
        """Free the engines and their sessions."""
        engines, self._engines = self._engines or {}, None
        for engine in engines.values():
            engine.close()
