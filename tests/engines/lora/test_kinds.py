"""Kinds of adapters: each kind's mathematics, written out in float64, for random shapes, ranks and layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sd2rt.engines.lora.file import read_lora
from sd2rt.engines.lora.merge import changes

F64 = NDArray[np.float64]
LAYER = "down_blocks.0.resnets.0.conv1"
KEY = "lora_unet_down_blocks_0_resnets_0_conv1"
PEFT_KEY = f"base_model.model.{LAYER}"

sides = st.integers(1, 4)
ranks = st.integers(1, 5)
kernels = st.sampled_from([(), (1, 1), (3, 3), (2, 3)])
seeds = st.integers(0, 1 << 30)


class Tensors:
    """Random tensors of one adapter, as in its file and in float64."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.file: dict[str, Any] = {}

    def draw(self, name: str, *shape: int, key: str = KEY) -> F64:
        value = self.rng.standard_normal(shape).astype(np.float32)
        self.file[f"{key}.{name}"] = value
        return value.astype(np.float64)

    def alpha(self) -> float:
        alpha = float(np.float32(self.rng.uniform(0.5, 4)))
        self.file[f"{KEY}.alpha"] = np.array(alpha, np.float32)
        return alpha

    def weight(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape).astype(np.float32)


def merged(
    folder: Path, tensors: dict[str, Any], weights: dict[str, Any], scale: float = 1.0, **config: Any
) -> dict[str, Any]:
    """Merged weights of a network with these weights, by name."""
    path = folder / "a.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes: Any = {"denoiser": {name: value.shape for name, value in weights.items()}, "text_encoder": {}}
    changed = changes([read_lora(path, scale=scale)], shapes)["denoiser"]
    return {
        name: changed[name].added_to(value) if name in changed else value for name, value in weights.items()
    }


def check(
    folder: Path,
    tensors: dict[str, Any],
    weight: Any,
    expected: NDArray[Any],
    scale: float = 1.0,
    **config: Any,
) -> None:
    """Compare one merged weight with its expected change at scale 1."""
    actual = merged(folder, tensors, {f"{LAYER}.weight": weight}, scale, **config)[f"{LAYER}.weight"]
    exact = weight.astype(np.float64) + scale * expected.reshape(weight.shape)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, exact, rtol=0, atol=3e-6 * (1 + np.abs(exact).max()))
    # The change has to be visible, or the comparison proves nothing.
    assert np.abs(expected).max() > 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


def tucker(core: F64, first: F64, second: F64) -> F64:
    """Sum over both ranks, one term at a time."""
    total = np.zeros((first.shape[1], second.shape[1], *core.shape[2:]))
    for p in range(core.shape[0]):
        for q in range(core.shape[1]):
            total += first[p][:, None, None, None] * second[q][None, :, None, None] * core[p, q][None, None]
    return total


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    kernel=kernels,
    rank=ranks,
    seed=seeds,
    core=st.booleans(),
)
def test_loha(
    folder: Path, rows: int, columns: int, kernel: tuple[int, ...], rank: int, seed: int, core: bool
) -> None:
    tensors = Tensors(seed)
    core = core and kernel not in ((), (1, 1))
    products = []
    for number in (1, 2):
        if core:
            t = tensors.draw(f"hada_t{number}", rank, rank, *kernel)
            a = tensors.draw(f"hada_w{number}_a", rank, rows)
            b = tensors.draw(f"hada_w{number}_b", rank, columns)
            products.append(tucker(t, a, b))
        else:
            a = tensors.draw(f"hada_w{number}_a", rows, rank)
            b = tensors.draw(f"hada_w{number}_b", rank, columns * int(np.prod(kernel)))
            products.append(np.sum([np.outer(a[:, r], b[r]) for r in range(rank)], axis=0))
    expected = tensors.alpha() / rank * products[0] * products[1]
    check(folder, tensors.file, tensors.weight(rows, columns, *kernel), expected, 0.7)


@settings(max_examples=40, deadline=None)
@given(
    outer=st.tuples(sides, sides),
    inner=st.tuples(sides, sides),
    kernel=kernels,
    rank=ranks,
    seed=seeds,
    first_whole=st.booleans(),
    second=st.sampled_from(["whole", "pair", "core"]),
)
def test_lokr(
    folder: Path,
    outer: tuple[int, int],
    inner: tuple[int, int],
    kernel: tuple[int, ...],
    rank: int,
    seed: int,
    first_whole: bool,
    second: str,
) -> None:
    tensors = Tensors(seed)
    if first_whole:
        one = tensors.draw("lokr_w1", *outer)
    else:
        one = tensors.draw("lokr_w1_a", outer[0], rank) @ tensors.draw("lokr_w1_b", rank, outer[1])
    if second == "whole":
        two = tensors.draw("lokr_w2", *inner, *kernel)
    elif second == "core" and len(kernel) == 2 and kernel != (1, 1):
        t = tensors.draw("lokr_t2", rank, rank, *kernel)
        two = tucker(t, tensors.draw("lokr_w2_a", rank, inner[0]), tensors.draw("lokr_w2_b", rank, inner[1]))
    else:
        a = tensors.draw("lokr_w2_a", inner[0], rank)
        two = a @ tensors.draw("lokr_w2_b", rank, inner[1] * int(np.prod(kernel)))
    two = two.reshape(*inner, -1)
    # The Kronecker product of each position in the kernel.
    product = np.stack([np.kron(one, two[:, :, k]) for k in range(two.shape[2])], axis=-1)
    # Without a rank there is nothing to divide by: LyCORIS then ignores alpha.
    alpha = tensors.alpha()
    expected = product if first_whole and second == "whole" else alpha / rank * product
    rows, columns = outer[0] * inner[0], outer[1] * inner[1]
    check(folder, tensors.file, tensors.weight(rows, columns, *kernel), expected, -0.4)


def lora(tensors: Tensors, rows: int, columns: int, kernel: tuple[int, ...], rank: int) -> F64:
    up = tensors.draw("lora_up.weight", rows, rank, *(1 for _ in kernel))
    down = tensors.draw("lora_down.weight", rank, columns, *kernel)
    return tensors.alpha() / rank * up.reshape(rows, rank) @ down.reshape(rank, -1)


def loha(tensors: Tensors, rows: int, columns: int, kernel: tuple[int, ...], rank: int) -> F64:
    size = columns * int(np.prod(kernel))
    one, two = (
        tensors.draw(f"hada_w{n}_a", rows, rank) @ tensors.draw(f"hada_w{n}_b", rank, size) for n in (1, 2)
    )
    return tensors.alpha() / rank * one * two


def lokr(tensors: Tensors, rows: int, columns: int, kernel: tuple[int, ...], rank: int) -> F64:
    one = tensors.draw("lokr_w1", 1, columns)
    two = tensors.draw("lokr_w2", rows, 1, *kernel).reshape(rows, 1, -1)
    return np.stack([np.kron(one, two[:, :, k]) for k in range(two.shape[2])], axis=-1)


@pytest.mark.parametrize("inner", [lora, loha, lokr])
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(2, 9),
    columns=st.integers(2, 9),
    kernel=kernels,
    rank=ranks,
    seed=seeds,
    on_input=st.booleans(),
)
def test_dora(
    folder: Path,
    inner: Callable[..., F64],
    rows: int,
    columns: int,
    kernel: tuple[int, ...],
    rank: int,
    seed: int,
    on_input: bool,
) -> None:
    """LyCORIS's norms, of the inputs or of the outputs, over every kind of inner change."""
    tensors = Tensors(seed)
    change = inner(tensors, rows, columns, kernel, rank).reshape(rows, columns, *kernel)
    shape = (1, columns) if on_input else (rows, 1)
    norms = tensors.draw("dora_scale", *shape, *(1 for _ in kernel)).reshape(-1)
    weight = tensors.weight(rows, columns, *kernel)
    whole = weight + change
    expected = np.empty(whole.shape)
    for channel in range(len(norms)):
        part = (slice(None), channel) if on_input else (channel,)
        expected[part] = norms[channel] * whole[part] / np.sqrt((whole[part] ** 2).sum()) - weight[part]
    check(folder, tensors.file, weight, expected)
    check(folder, tensors.file, weight, expected, 0.25)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 9), columns=st.integers(2, 9), kernel=kernels, seed=seeds, on_input=st.booleans())
def test_ia3(
    folder: Path, rows: int, columns: int, kernel: tuple[int, ...], seed: int, on_input: bool
) -> None:
    tensors = Tensors(seed)
    length = columns if on_input else rows
    shape = (length,) if kernel == () else (1, length, *(1 for _ in kernel))
    factors = tensors.draw("weight", *shape).reshape(-1)
    tensors.file[f"{KEY}.on_input"] = np.array(int(on_input))
    weight = tensors.weight(rows, columns, *kernel)
    expected = np.empty(weight.shape)
    for channel in range(length):
        part = (slice(None), channel) if on_input else (channel,)
        expected[part] = factors[channel] * weight[part]
    check(folder, tensors.file, weight, expected, 1.3)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), kernel=kernels, seed=seeds)
def test_whole_differences(folder: Path, rows: int, columns: int, kernel: tuple[int, ...], seed: int) -> None:
    """Differences of weights, biases and norms."""
    tensors = Tensors(seed)
    weights = {
        f"{LAYER}.weight": tensors.weight(rows, columns, *kernel),
        f"{LAYER}.bias": tensors.weight(rows),
        "down_blocks.0.resnets.0.norm1.weight": tensors.weight(columns),
        "down_blocks.0.resnets.0.norm1.bias": tensors.weight(columns),
    }
    norm = "lora_unet_down_blocks_0_resnets_0_norm1"
    names = (f"{KEY}.diff", f"{KEY}.diff_b", f"{norm}.w_norm", f"{norm}.b_norm")
    differences = [
        tensors.draw(name.rpartition(".")[2], *value.shape, key=name.rpartition(".")[0])
        for name, value in zip(names, weights.values(), strict=True)
    ]
    actual = merged(folder, tensors.file, weights, 0.6)
    for (name, weight), difference in zip(weights.items(), differences, strict=True):
        np.testing.assert_allclose(actual[name], weight + 0.6 * difference, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rows=st.integers(1, 9), columns=st.integers(1, 9), rank=ranks, other=st.integers(1, 9))
def test_peft_of_lycoris(folder: Path, seed: int, rows: int, columns: int, rank: int, other: int) -> None:
    """PEFT scales by its configuration: LoKr of whole matrices too, by the rank of the first pattern that matches."""
    tensors = Tensors(seed)
    one = tensors.draw("lokr_w1", rows, columns, key=PEFT_KEY)
    two = tensors.draw("lokr_w2", 2, 3, key=PEFT_KEY)
    config: dict[str, Any] = {
        "peft_type": "LOKR",
        "alpha": 3,
        "r": rank,
        "rank_pattern": {"resnets.[1-9].conv1": 5, r"resnets\.\d+\.conv\d": other, LAYER: 7},
    }
    weight = tensors.weight(rows * 2, columns * 3)
    check(folder, tensors.file, weight, np.kron(one, two) * np.float64(3 / other), **config)
    del config["rank_pattern"]
    check(folder, tensors.file, weight, np.kron(one, two) * np.float64(3 / rank), **config)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rows=st.integers(2, 9), columns=st.integers(2, 9), on_input=st.booleans())
def test_peft_of_ia3(folder: Path, seed: int, rows: int, columns: int, on_input: bool) -> None:
    """Factors of inputs scale columns; factors of outputs scale rows and the bias."""
    tensors = Tensors(seed)
    factors = tensors.draw("ia3_l", *((1, columns) if on_input else (rows, 1)), key=PEFT_KEY)
    weight, bias = tensors.weight(rows, columns), tensors.weight(rows)
    weights = {f"{LAYER}.weight": weight, f"{LAYER}.bias": bias}
    actual = merged(
        folder, tensors.file, weights, peft_type="IA3", feedforward_modules=["conv1"] if on_input else []
    )
    np.testing.assert_allclose(actual[f"{LAYER}.weight"], weight * factors, rtol=0, atol=1e-5)
    expected = bias if on_input else bias * factors[:, 0]
    np.testing.assert_allclose(actual[f"{LAYER}.bias"], expected, rtol=0, atol=1e-5)
    # A layer without a bias has nothing else to scale.
    alone = merged(folder, tensors.file, {f"{LAYER}.weight": weight}, peft_type="IA3")
    np.testing.assert_array_equal(alone[f"{LAYER}.weight"], actual[f"{LAYER}.weight"])


@settings(max_examples=20, deadline=None)
@given(seed=seeds, rows=st.integers(1, 9), columns=st.integers(1, 9), rank=ranks)
def test_peft_with_biases(folder: Path, seed: int, rows: int, columns: int, rank: int) -> None:
    tensors = Tensors(seed)
    down = tensors.draw("lora_A.weight", rank, columns, key=PEFT_KEY)
    up = tensors.draw("lora_B.weight", rows, rank, key=PEFT_KEY)
    change = tensors.draw("lora_B.bias", rows, key=PEFT_KEY)
    weight, bias = tensors.weight(rows, columns), tensors.weight(rows)
    weights = {f"{LAYER}.weight": weight, f"{LAYER}.bias": bias}
    actual = merged(folder, tensors.file, weights, lora_alpha=6, lora_bias=True)
    np.testing.assert_allclose(actual[f"{LAYER}.weight"], weight + 6 / rank * up @ down, rtol=0, atol=2e-4)
    np.testing.assert_allclose(actual[f"{LAYER}.bias"], bias + 6 / rank * change, rtol=0, atol=2e-4)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, rows=st.integers(2, 9), columns=st.integers(2, 9), kernel=kernels, rank=ranks)
def test_peft_of_dora(
    folder: Path, seed: int, rows: int, columns: int, kernel: tuple[int, ...], rank: int
) -> None:
    """PEFT's norms are of the outputs: [O], and [1, O, 1, 1] of convolutions."""
    tensors = Tensors(seed)
    down = tensors.draw("lora_A.weight", rank, columns, *kernel, key=PEFT_KEY)
    up = tensors.draw("lora_B.weight", rows, rank, *(1 for _ in kernel), key=PEFT_KEY)
    shape = (rows,) if kernel == () else (1, rows, *(1 for _ in kernel))
    norms = tensors.draw("lora_magnitude_vector", *shape, key=PEFT_KEY).reshape(-1, 1)
    weight = tensors.weight(rows, columns, *kernel)
    flat = weight.reshape(rows, -1)
    whole = flat + 4 / rank * up.reshape(rows, rank) @ down.reshape(rank, -1)
    expected = norms * whole / np.sqrt((whole**2).sum(axis=1, keepdims=True)) - flat
    check(folder, tensors.file, weight, expected, use_dora=True, lora_alpha=4)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8(folder: Path, name: str) -> None:
    """All finite numbers of both formats, against PyTorch's conversion."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    from sd2rt.engines.weights.safetensors import read_safetensors

    numbers = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
    path = folder / "float8.safetensors"
    save({"a": numbers}, path)
    actual = read_safetensors(path.read_bytes())["a"]
    np.testing.assert_array_equal(actual, numbers.float().numpy())
    finite = numbers[numbers.float().isfinite()].reshape(2, -1)
    save({f"{KEY}.lora_down.weight": finite, f"{KEY}.lora_up.weight": finite[:, :2].contiguous()}, path)
    weight = np.zeros((2, finite.shape[1]), np.float32)
    shapes: Any = {"denoiser": {f"{LAYER}.weight": weight.shape}, "text_encoder": {}}
    change = changes([read_lora(path)], shapes)["denoiser"][f"{LAYER}.weight"].added_to(weight)
    exact = finite[:, :2].double() @ finite.double()
    np.testing.assert_allclose(change, exact.numpy(), rtol=1e-6)
