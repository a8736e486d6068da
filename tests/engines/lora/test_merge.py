"""Merging LoRAs of each layout, sums of several, and refused files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.file import read_lora
from sd2rt.engines.lora.merge import MergedWeights, changes

from ...lora_files import ATTENTION, CONVOLUTIONS, LINEAR, Layout, Set, draw, write
from .small_networks import BLOCK, NETWORKS, SHAPES

EVERYTHING = {network: LINEAR[network] + CONVOLUTIONS[network] for network in LINEAR}
Q = f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q"


def deltas(*paths: Path, scale: float = 1.0) -> dict[tuple[str, str], Any]:
    """Sum of the changes of several files, by part and weight."""
    by_part = changes([read_lora(path, scale=scale) for path in paths], SHAPES)
    return {
        (part, name): change.added_to(np.zeros(SHAPES[part][name], np.float32))
        for part, by_weight in by_part.items()
        for name, change in by_weight.items()
    }


def check(actual: dict[tuple[str, str], Any], factors: Set, scale: float = 1.0) -> None:
    parts = {"unet": "denoiser", "text_encoder": "text_encoder"}
    assert set(actual) == {(parts[network], f"{module}.weight") for network, module in factors}
    for (network, module), factor in factors.items():
        expected = scale * factor.delta()
        delta = actual[parts[network], f"{module}.weight"]
        assert delta.dtype == np.float32
        np.testing.assert_allclose(delta, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


LAYOUTS: list[tuple[Layout, dict[str, list[str]]]] = [
    ("kohya", EVERYTHING),
    ("diffusers", EVERYTHING),
    ("diffusers-peft", EVERYTHING),
    ("peft", {"unet": EVERYTHING["unet"]}),
    ("peft", {"text_encoder": EVERYTHING["text_encoder"]}),
]


@pytest.mark.parametrize(("layout", "layers"), LAYOUTS)
@pytest.mark.parametrize("scale", [1.0, -0.35])
def test_layouts(tmp_path: Path, layout: Layout, layers: dict[str, list[str]], scale: float) -> None:
    factors = draw(layers, NETWORKS)
    check(deltas(write(tmp_path / "a.safetensors", layout, factors), scale=scale), factors, scale)


def test_layouts_are_equal_to_the_bit(tmp_path: Path) -> None:
    factors = draw(ATTENTION, NETWORKS)
    # The oldest layout stores no alphas, which default to the ranks.
    plain = {key: type(factor)(factor.down, factor.up, len(factor.down)) for key, factor in factors.items()}
    first = deltas(write(tmp_path / "kohya.safetensors", "kohya", plain))
    check(first, plain)
    for layout in ("diffusers-old", "diffusers", "diffusers-peft"):
        actual = deltas(write(tmp_path / f"{layout}.safetensors", layout, plain))
        assert set(actual) == set(first)
        for key, delta in actual.items():
            np.testing.assert_array_equal(delta, first[key], err_msg=f"{layout} {key}")


def test_names_without_a_network(tmp_path: Path) -> None:
    """The layout of diffusers' first training script."""
    factors = draw({"unet": ATTENTION["unet"]}, NETWORKS, alpha=3.0)
    plain = {key: type(factor)(factor.down, factor.up, len(factor.down)) for key, factor in factors.items()}
    path = write(tmp_path / "a.safetensors", "diffusers-old", plain)
    from safetensors.numpy import load_file

    save_file({key.removeprefix("unet."): value for key, value in load_file(path).items()}, path)
    check(deltas(path), plain)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(tmp_path: Path, dtype: Any) -> None:
    factors = draw(EVERYTHING, NETWORKS)
    rounded = {
        key: type(factor)(
            factor.down.astype(dtype).astype(np.float32),
            factor.up.astype(dtype).astype(np.float32),
            factor.alpha,
        )
        for key, factor in factors.items()
    }
    check(deltas(write(tmp_path / "a.safetensors", "kohya", factors, dtype)), rounded)


def test_bfloat16_and_whole_alphas(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    down, up = torch.randn(2, 16), torch.randn(16, 2)
    save(
        {
            f"{Q}.lora_down.weight": down.bfloat16(),
            f"{Q}.lora_up.weight": up.bfloat16(),
            f"{Q}.alpha": torch.tensor(3),
        },
        tmp_path / "a.safetensors",
    )
    ((_, delta),) = deltas(tmp_path / "a.safetensors").items()
    expected = 1.5 * up.bfloat16().double() @ down.bfloat16().double()
    np.testing.assert_allclose(delta, expected.numpy(), atol=1e-5)


def test_linear_layers_as_convolutions(tmp_path: Path) -> None:
    """Some trainers treat attention projections as 1x1 convolutions."""
    (factors,) = draw({"unet": ["down_blocks.0.attentions.0.proj_in"]}, NETWORKS).values()
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {
        f"{stem}.lora_down.weight": factors.down[:, :, None, None],
        f"{stem}.lora_up.weight": factors.up[:, :, None, None],
        f"{stem}.alpha": np.array([factors.alpha], np.float32),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    check(deltas(tmp_path / "a.safetensors"), {("unet", "down_blocks.0.attentions.0.proj_in"): factors})


def test_convolutions_in_three(tmp_path: Path) -> None:
    """LyCORIS's LoCon, a kernel between two 1x1 convolutions, agrees with applying the three in turn."""
    torch = pytest.importorskip("torch")
    from torch.nn.functional import conv2d

    generator = torch.Generator().manual_seed(0)
    down, mid, up = (
        torch.randn(shape, generator=generator) for shape in ((3, 16, 1, 1), (3, 3, 3, 3), (16, 3, 1, 1))
    )
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.lora_mid.weight": mid}
    save_file({key: value.numpy() for key, value in tensors.items()}, tmp_path / "a.safetensors")
    ((_, delta),) = deltas(tmp_path / "a.safetensors").items()
    image = torch.randn(1, 16, 9, 9, generator=generator)
    expected = conv2d(conv2d(conv2d(image, down), mid, padding=1), up)
    result = conv2d(image, torch.from_numpy(delta), padding=1)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-3)


def test_peft_with_one_alpha_and_roots(tmp_path: Path) -> None:
    factors = draw({"unet": ATTENTION["unet"]}, NETWORKS, alpha=5.0)
    path = write(tmp_path / "a.safetensors", "peft", factors)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "lora_alpha": 5, "use_rslora": True, "alpha_pattern": {"attn2.to_k": 2}}
        )
    )
    alphas = {key: 2.0 if key[1].endswith("attn2.to_k") else 5.0 for key in factors}
    rooted = {
        key: type(factor)(factor.down, factor.up, alphas[key] * float(np.sqrt(len(factor.down))))
        for key, factor in factors.items()
    }
    check(deltas(path), rooted)


def test_several_add_up_in_any_order(tmp_path: Path) -> None:
    paths: list[Path] = []
    total: dict[tuple[str, str], Any] = {}
    for seed in range(3):
        factors = draw(EVERYTHING, NETWORKS, seed=seed)
        paths.append(write(tmp_path / f"{seed}.safetensors", "kohya", factors))
        for key, factor in factors.items():
            total[key] = total.get(key, 0) + factor.delta()
    result, other = deltas(*paths), deltas(paths[2], paths[0], paths[1])
    for (network, module), expected in total.items():
        key = ("denoiser" if network == "unet" else network, f"{module}.weight")
        np.testing.assert_allclose(result[key], expected, atol=5e-6 * np.abs(expected).max())
        np.testing.assert_array_equal(result[key], other[key])


def test_sums_are_rounded_once(tmp_path: Path) -> None:
    factors = draw({"unet": ATTENTION["unet"]}, NETWORKS)
    loras = [
        read_lora(write(tmp_path / f"{name}.safetensors", "kohya", factors), name=name, scale=scale)
        for name, scale in (("a", 1.0), ("b", 0.25))
    ]
    weights = {
        name: np.random.default_rng(1).standard_normal(shape).astype(np.float16)
        for name, shape in SHAPES["denoiser"].items()
    }
    merged = MergedWeights(weights.__getitem__, changes(loras, SHAPES)["denoiser"])
    assert len(merged) == len(list(merged)) == len(factors)
    for (_, module), changed in factors.items():
        result = merged[f"{module}.weight"]
        exact = weights[f"{module}.weight"].astype(np.float64) + 1.25 * changed.delta()
        assert result.dtype == np.float16
        # Half a unit in the last place, plus the float32 error.
        assert np.abs(result - exact).max() <= np.spacing(np.abs(exact).max().astype(np.float16)) * 0.501


def test_a_sum_too_large_for_its_precision(tmp_path: Path) -> None:
    path = write(tmp_path / "strong.safetensors", "kohya", draw({"unet": ATTENTION["unet"]}, NETWORKS))
    weights = {name: np.zeros(shape, np.float16) for name, shape in SHAPES["denoiser"].items()}
    merged = MergedWeights(weights.__getitem__, changes([read_lora(path, scale=1e6)], SHAPES)["denoiser"])
    with pytest.raises(
        RequestError, match="with strong some weights exceed the range of float16: use a smaller"
    ):
        list(merged.values())


def refusal(tmp_path: Path, tensors: dict[str, Any], name: str = "a.safetensors") -> str:
    path = tmp_path / name
    if tensors:
        save_file({key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()}, path)
    with pytest.raises(RequestError) as caught:
        deltas(path)
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(f"{path} ", "", 1)


def pair(stem: str, rows: int, columns: int, rank: int = 2) -> dict[str, Any]:
    return {
        f"{stem}.lora_down.weight": np.ones((rank, columns)),
        f"{stem}.lora_up.weight": np.ones((rows, rank)),
    }


K = Q.replace("attn1_to_q", "attn2_to_k")
TE = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            pair(K, 16, 768),
            "was made for Stable Diffusion 1: its cross-attention takes text 768 numbers wide",
        ),
        (pair(K, 16, 2048), "was made for Stable Diffusion XL: its cross-attention"),
        (pair(K, 16, 1024), "was made for Stable Diffusion 2: .* this bundle's is 48"),
        (pair(TE, 768, 768), "was made for Stable Diffusion 1: its text encoder is 768 numbers wide"),
        (pair(TE, 5, 5), "was made for another model: its text encoder is 5 numbers wide"),
        (pair(TE.replace("lora_te", "lora_te2"), 5, 5), r"was made for Stable Diffusion XL \(lora_te2_"),
        (
            {f"{Q}.oft_blocks": np.ones((2, 8, 8))},
            r"contains OFT \(.*oft_blocks\), which is not supported: use a LoRA, LoHa",
        ),
        ({f"{Q}.a1.weight": np.ones((2, 2))}, "contains GLoRA"),
        ({f"{Q}.set_weight": np.ones((16, 16))}, "contains weights of other shapes or whole weights"),
        ({f"{Q}.hada_w1_a": np.ones((2, 2))}, "lacks the hada_w1_b factor"),
        ({f"{Q}.lokr_w1": np.ones((2, 2))}, "lacks the lokr_w2_a factor"),
        ({f"{Q}.lokr_w1": np.ones((2, 2)), f"{Q}.lokr_w2": np.ones((8, 9))}, r"with the shape \[16, 18\]"),
        ({f"{Q}.lokr_w1": np.ones((2, 2, 1)), f"{Q}.lokr_w2": np.ones((8, 8))}, "which do not match"),
        ({f"{Q}.diff": np.ones((16, 17))}, r"with the shape \[16, 17\], this bundle's has \[16, 16\]"),
        ({f"{Q}.diff": np.ones((16, 16)), **pair(Q, 16, 16)}, "tensors of several kinds"),
        ({f"{Q}.diff_b": np.ones(16)}, "changes 1 layers .* do not have, such as unet.*to_q.bias"),
        ({f"{Q}.dora_scale": np.ones(3), **pair(Q, 16, 16)}, "with the shape"),
        ({f"{Q}.dora_scale": np.ones((4, 4)), **pair(Q, 16, 16)}, r"the DoRA norms of .* \[4, 4\]"),
        (
            {f"{Q}.weight": np.ones(17), f"{Q}.on_input": np.array(1.0)},
            r"with the shape \[17\], this bundle's has \[16, 16\]",
        ),
        (
            {"down_blocks.0.weight": np.ones(3), **pair(Q, 16, 16)},
            "1 of its 3 keys, such as down_blocks.0.weight",
        ),
        (
            {"transformer.a.lora_A.weight": np.ones((2, 2))},
            "do not fit the layouts of kohya, diffusers or PEFT",
        ),
        (
            pair("lora_unet_up_blocks_9_conv", 4, 4),
            "changes 1 layers .* do not have, such as unet.up_blocks_9_con",
        ),
        (pair(Q, 16, 17), r"with the shape \[16, 17\], this bundle's has \[16, 16\]"),
        (pair("lora_unet_conv_in", 16, 4), r"with the shape \[16, 4\], this bundle's has \[16, 4, 3, 3\]"),
        ({f"{Q}.lora_down.weight": np.ones((2, 16))}, "lacks the up factor of unet.down_blocks_0"),
        ({f"{Q}.lora_up.weight": np.ones((16, 2))}, "lacks the down factor"),
        ({f"{Q}.alpha": np.array(1.0)}, "lacks the down factor"),
        ({**pair(Q, 16, 16), f"{Q}.lora_up.weight": np.ones((16, 3))}, "which do not match"),
        ({**pair(Q, 16, 16), f"{Q}.lora_mid.weight": np.ones((3, 3, 3, 3))}, "which do not match"),
        (
            {**pair(Q, 16, 16), f"{Q}.alpha": np.ones(2)},
            r"alpha of .* has the shape \[2\], expected a number",
        ),
        ({**pair(Q, 16, 16), f"{Q}.alpha": np.array(np.nan)}, r"not finite \(.*alpha\): get the file again"),
        ({**pair(Q, 16, 16), f"{Q}.lora_up.weight": np.full((16, 2), np.inf)}, "values that are not finite"),
        (
            {**pair(Q, 16, 16), **pair(f"unet.{BLOCK}.attn1.to_q", 16, 16)},
            "changes .*to_q.weight in two key layouts",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    import re

    assert re.search(said, refusal(tmp_path, tensors))


def test_two_of_one_name(tmp_path: Path) -> None:
    factors = draw({"unet": ATTENTION["unet"]}, NETWORKS)
    paths = [write(tmp_path / folder / "toy.safetensors", "kohya", factors) for folder in ("a", "b")]
    with pytest.raises(RequestError, match="two LoRAs are named 'toy': rename one of them"):
        changes([read_lora(path) for path in paths], SHAPES)
