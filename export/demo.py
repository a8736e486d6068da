"""The checkpoint named ``demo``: small, seeded, random weights that are never written to a file."""

from __future__ import annotations

import torch

from sd2rt.engines.kinds import Variant
from sd2rt.export.identify import stated
from sd2rt.export.parts import Found
from sd2rt.export.pipeline_configs import Config, PartName
from sd2rt.export.random_configs import DEMO_SEED, DEMOS
from sd2rt.export.random_weights import WEIGHT_FILES, RandomWeights
from sd2rt.export.tokenizer_json import packaged_tokenizer_json


class RandomParts:
    """A checkpoint of random weights that was never written."""

    def __init__(self, weights: RandomWeights) -> None:
        self._weights = weights

    def config(self, part: PartName) -> Config:
        return self._weights.configs.part(part)

    def tensors(self, part: PartName) -> dict[str, torch.Tensor]:
        return self._weights.tensors(part)

    def tokenizer_json(self) -> str:
        return packaged_tokenizer_json()


def open_demo(variant: str | None) -> Found:
    """The checkpoint named ``demo``; a ``variant`` chooses among its forms, of which each kind has one.

    Raises CheckpointError for a variant that is unknown or not supported.
    """
    asked = (row.kind for evidence in stated(variant) for row in evidence.rows)
    kind: Variant = next((kind for kind in asked if kind is not None), "base")
    configs = DEMOS[kind]
    weights = RandomWeights(configs, DEMO_SEED)
    return Found(
        name="demo",
        release=None,
        kind=kind,
        configs=configs,
        source={WEIGHT_FILES[part]: weights.sha256(part) for part in configs.parts},
        license="Apache-2.0",
        parts=RandomParts(weights),
    )
