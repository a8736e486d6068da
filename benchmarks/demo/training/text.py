"""The text encoder: SD2's tokenizer, a table of the tokens in use, and its training loss.

With the denoiser's loss alone, the text encoder learns slowest: layout is decided at high noise levels, where the
denoiser's loss is weak. It is therefore trained first, with an auxiliary reader of one cross-attention layer: each
cell of an 8x8 grid queries the text states for the image content there, as the denoiser's cross attention will.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.demo import world
from sd2rt.export.checkpoints.tiny_configs import DEMO
from sd2rt.export.checkpoints.tokenizer_json import packaged_tokenizer_json

LENGTH = 77
_CELLS = 8


class Captions:
    """SD2's tokenizer, reduced to the tokens of the world's captions."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_str(packaged_tokenizer_json())
        self._tokenizer.enable_truncation(LENGTH)
        self._tokenizer.enable_padding(length=LENGTH, pad_id=0, pad_token="!")
        ids: set[int] = set()
        for text in _vocabulary():
            ids.update(self._tokenizer.encode(text).ids)
        self.rows = sorted(ids)
        """Token ids in use, ascending."""
        self._row = {token: row for row, token in enumerate(self.rows)}

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts to rows of the reduced token table: [N, 77] int64."""
        encoded = self._tokenizer.encode_batch(list(texts))
        return torch.tensor([[self._row[token] for token in one.ids] for one in encoded])


def _vocabulary() -> list[str]:
    words = [*world.COLORS, *world.SHAPES, *world.SIZES, *world.PLACES, *world.RELATIONS, *world.BACKGROUNDS]
    return ["", "a", "an", "on", "shape", *words, *(f"a {word}" for word in words)]


def text_encoder(captions: Captions) -> CLIPTextModel:
    """The demo's text encoder with the reduced token table."""
    # Any end-token id will do: nothing reads the pooled output.
    return CLIPTextModel(
        CLIPTextConfig(**{**DEMO.text_encoder, "vocab_size": len(captions.rows), "eos_token_id": 1})
    )


class GridReader(nn.Module):
    """Predict the content of each grid cell from text states: a thing's shape and colour, and the grey level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(_CELLS * _CELLS, width) * 0.5)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Linear(width, len(world.COLORS) + len(world.SHAPES) + 2 + 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map states [N, 77, width] to logits of colour or none, shape or none, and grey: [N, 64, ...]."""
        queries = self.queries.expand(len(states), -1, -1)
        logits: torch.Tensor = self.head(self.attention(queries, states, states, need_weights=False)[0])
        return logits


def grid_facts(scene: world.Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per cell: indices of colour and shape (the number of colours or shapes for none), and grey level."""
    color = np.full((_CELLS, _CELLS), len(world.COLORS))
    shape = np.full((_CELLS, _CELLS), len(world.SHAPES))
    for thing in scene.things:
        covered = world.cover(thing, _CELLS * 4).reshape(_CELLS, 4, _CELLS, 4).mean((1, 3)) > 0.3
        color[covered] = list(world.COLORS).index(thing.color)
        shape[covered] = world.SHAPES.index(thing.shape)
    grey = np.linspace(*world.BACKGROUNDS[scene.background], _CELLS, dtype=np.float32) / 127.5 - 1
    return color.ravel(), shape.ravel(), np.repeat(grey, _CELLS)


class WordsLoss:
    """Loss of the text encoder: cross entropy of colour and shape per cell, plus squared error of grey."""

    def __init__(self, captions: Captions, encoder: nn.Module, reader: nn.Module, batch: int) -> None:
        self._captions, self._encoder, self._reader, self._batch = captions, encoder, reader, batch

    def __call__(self, generator: np.random.Generator, noise: torch.Generator) -> Mapping[str, torch.Tensor]:
        scenes = [world.draw_scene(generator) for _ in range(self._batch)]
        ids = self._captions.encode([world.caption(scene, generator) for scene in scenes])
        facts = [grid_facts(scene) for scene in scenes]
        color, shape, grey = (torch.from_numpy(np.stack(column)) for column in zip(*facts, strict=True))
        read = self._reader(self._encoder(ids).last_hidden_state)
        colors = len(world.COLORS) + 1
        by_color = F.cross_entropy(read[..., :colors].flatten(0, 1), color.flatten())
        by_shape = F.cross_entropy(read[..., colors:-1].flatten(0, 1), shape.flatten())
        by_grey = F.mse_loss(read[..., -1], grey)
        has_thing = color < colors - 1
        color_accuracy = (read[..., :colors].argmax(-1) == color)[has_thing].float().mean()
        shape_accuracy = (read[..., colors:-1].argmax(-1) == shape)[has_thing].float().mean()
        loss = by_color + by_shape + by_grey
        return {"loss": loss, "color": color_accuracy, "shape": shape_accuracy, "grey": by_grey}
