"""A UNet that takes latents of any side computes as diffusers does, and is unchanged where sides halve evenly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.graphs.upsampling import take_any_side
from sd2rt.export.reference import reference_pipeline

SIDES = [(8, 8), (16, 24), (9, 13), (17, 16), (15, 8), (11, 27), (2, 3), (1, 1)]


@pytest.fixture(scope="module")
def unets(small_checkpoint: Path) -> tuple[Any, Any]:
    """diffusers' UNet, and a copy of it that takes any side."""
    unet = reference_pipeline(open_checkpoint(str(small_checkpoint))).unet
    other = copy.deepcopy(unet)
    take_any_side(other)
    return unet, other


def output(unet: Any, height: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, height, width, generator=draw)
    text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=draw)
    with torch.no_grad():
        result: torch.Tensor = unet(sample, torch.tensor([500.0, 20.0]), text).sample
    return result


@pytest.mark.parametrize("sides", SIDES)
def test_output_is_that_of_diffusers(unets: tuple[Any, Any], sides: tuple[int, int]) -> None:
    unet, other = unets
    assert torch.equal(output(other, *sides), output(unet, *sides))


def test_twice_is_once(unets: tuple[Any, Any]) -> None:
    unet, other = unets
    again = copy.deepcopy(unet)
    take_any_side(again)
    take_any_side(again)
    assert torch.equal(output(again, 9, 13), output(other, 9, 13))


def test_a_failed_call_leaves_no_sizes(unets: tuple[Any, Any]) -> None:
    unet, other = unets
    with pytest.raises(RuntimeError):
        other(torch.zeros(1, 4, 9, 13), torch.tensor([1.0]), torch.zeros(1, 77, 3))
    assert torch.equal(output(other, 10, 7), output(unet, 10, 7))
