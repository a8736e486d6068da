"""A pipeline that records a timeline, built by subclassing: the plain pipeline has no timing code."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.interface import Engine, Float32Array
from sd2rt.runtime.bench.timed_engine import TimedEngine
from sd2rt.runtime.bench.timeline import Timeline
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.networks.vae import Vae
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.prompts.encoder import TextEncoder
from sd2rt.runtime.prompts.tokenizer import Tokenizer, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

TOKENISE, TEXT, ENCODER, DECODER, DEPTH = "tokenise", "text", "encoder", "decoder", "depth"


class TimedNetworks(Networks):
    """A bundle's networks with recorded calls."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # Set before opening, which already requests engines.
        self.timeline = Timeline()
        self._timed: dict[PartName, TimedEngine] = {}
        super().__init__(*args, **options)

    def engine(self, part: PartName) -> Engine:
        engine, timed = super().engine(part), self._timed.get(part)
        if timed is None or timed.inner is not engine:
            timed = self._timed[part] = TimedEngine(engine, part, self.timeline)
        return timed

    def _text_encoder(self, tokenizer: Tokenizer) -> TextEncoder:
        return _TimedText(self.timeline, self.bundle, self.engine("text_encoder"), tokenizer, self.turns.turn)

    @cached_property
    def vae(self) -> Vae:
        return _TimedVae(self.timeline, self.engine, self.bundle.manifest.latents, self.tile, self.turns.turn)

    def depth(self, image: Image) -> NDArray[np.float32]:
        with self.timeline.span(DEPTH):
            return super().depth(image)


class _TimedText(TextEncoder):
    def __init__(self, timeline: Timeline, *parts: Any) -> None:
        super().__init__(*parts)
        self._timeline = timeline

    def __call__(self, prompt: str, clip_skip: int = 0) -> NDArray[Any]:
        with self._timeline.span(TEXT):
            return super().__call__(prompt, clip_skip)

    def _tokenize(self, prompt: str) -> Tokens:
        with self._timeline.span(TOKENISE):
            return super()._tokenize(prompt)


class _TimedVae(Vae):
    def __init__(self, timeline: Timeline, *parts: Any) -> None:
        super().__init__(*parts)
        self._timeline = timeline

    def decode(self, latents: Float32Array) -> Float32Array:
        with self._timeline.span(DECODER):
            return super().decode(latents)

    def encode(self, image: Float32Array) -> Float32Array:
        with self._timeline.span(ENCODER):
            return super().encode(image)


class TimedPipeline(Pipeline):
    """Records launches and waits of every part, and text encoding, image encoding and decoding around them."""

    _networks_type: ClassVar[type[Networks]] = TimedNetworks

    @property
    def timeline(self) -> Timeline:
        assert isinstance(self._networks, TimedNetworks)
        return self._networks.timeline

    def clear_text_cache(self) -> None:
        """Forget encoded texts, so that they are encoded again, as in a new pipeline."""
        self._networks.text.clear_cache()

    @property
    def largest_batch(self) -> int | None:
        """Largest number of images per call that the engines support; None if unlimited."""
        return self._networks.max_batch
