"""Changes that are seen to be zero: LoRAs that were not trained have no effect, and are noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sd2rt.engines.lora.change import Decomposed, Difference, LowRank, Scaling
from sd2rt.engines.lora.file import read_lora
from sd2rt.engines.lora.products import Hadamard, Kronecker, Pair

WEIGHT = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
Make = Callable[..., Any]


def made(*shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


KINDS: dict[str, tuple[Make, list[tuple[int, ...]]]] = {
    "low rank": (lambda down, up: LowRank(down, up, None, 0.5), [(2, 4), (6, 2)]),
    "difference": (Difference, [(6, 4)]),
    "scaling": (lambda factors: Scaling(factors, on_input=False), [(6,)]),
    "hadamard": (
        lambda a, b, c, d: Hadamard(Pair(a, b, None), Pair(c, d, None), 0.5),
        [(6, 2), (2, 4), (6, 2), (2, 4)],
    ),
    "kronecker": (lambda a, b: Kronecker(a, b, 0.5), [(2, 2), (3, 2)]),
    "kronecker of pairs": (
        lambda a, b, c, d: Kronecker(Pair(a, b, None), Pair(c, d, None), 0.5),
        [(2, 1), (1, 2), (3, 1), (1, 2)],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_change_with_a_zero_factor_is_zero(name: str) -> None:
    make, shapes = KINDS[name]
    tensors = made(*shapes)
    change = make(*tensors)
    assert not change.is_zero
    assert change.delta(1.0, WEIGHT).any()
    for index, tensor in enumerate(tensors):
        zero = make(*tensors[:index], 0 * tensor, *tensors[index + 1 :])
        assert zero.is_zero
        assert not zero.delta(1.0, WEIGHT).any()


def test_new_norms_may_change_a_weight_alone() -> None:
    down, up, norms = made((2, 4), (6, 2), (6,))
    change = Decomposed(LowRank(down, 0 * up, None, 1.0), norms, on_input=False)
    assert not change.is_zero
    assert change.delta(1.0, WEIGHT).any()


@pytest.mark.parametrize("trained", [False, True])
def test_a_file_without_effect(tmp_path: Path, trained: bool) -> None:
    down, up = made((2, 4), (6, 2))
    key = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up * trained}
    save_file(tensors, tmp_path / "a.safetensors")
    assert read_lora(tmp_path / "a.safetensors").is_zero != trained
