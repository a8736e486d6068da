"""Names of layers in files of different programs: each must reach the same weight of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.file import read_lora
from sd2rt.engines.lora.ldm_names import ldm_names
from sd2rt.engines.lora.merge import changes


def small_unet(layers: int, attention: tuple[bool, ...]) -> Any:
    """A UNet in diffusers, with attention in these blocks."""
    diffusers = pytest.importorskip("diffusers")
    blocks = len(attention)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=[32 * 2 ** min(block, 2) for block in range(blocks)],
        layers_per_block=layers,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
        use_linear_projection=True,
        down_block_types=["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attention],
        up_block_types=["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attention)],
    )


UNETS = [
    (1, (True, True)),
    (2, (True, True, True, False)),  # Stable Diffusion 2
    (2, (False, True, True, True)),  # its upscaler
    (3, (True, False)),
]


@pytest.mark.parametrize(("layers", "attention"), UNETS)
def test_ldm_names_of_all_layers(layers: int, attention: tuple[bool, ...]) -> None:
    """diffusers converts a checkpoint with these names to the same network."""
    torch = pytest.importorskip("torch")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = small_unet(layers, attention)
    state = {
        name: torch.full_like(value, index) for index, (name, value) in enumerate(unet.state_dict().items())
    }
    names = {path: name for name, path in ldm_names({key.rpartition(".")[0] for key in state}).items()}
    ldm = {}
    for key, value in state.items():
        path, _, parameter = key.rpartition(".")
        ldm[f"model.diffusion_model.{names[path]}.{parameter}"] = value
    assert len(ldm) == len(state)
    converted = convert_ldm_unet_checkpoint(ldm, dict(unet.config))
    assert set(converted) == set(state)
    for key, value in converted.items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(("layers", "attention"), UNETS)
@pytest.mark.parametrize("style", ["flat", "flat ldm", "comfy", "dotted ldm", "comfy of a model"])
def test_every_layer_by_every_name(
    tmp_path: Path, style: str, layers: int, attention: tuple[bool, ...]
) -> None:
    unet = small_unet(layers, attention)
    shapes: Any = {
        "denoiser": {name: tuple(value.shape) for name, value in unet.state_dict().items()},
        "text_encoder": {},
    }
    ldm = {
        path: name for name, path in ldm_names({key.rpartition(".")[0] for key in shapes["denoiser"]}).items()
    }
    rng = np.random.default_rng(layers)
    tensors, expected = {}, {}
    for name, shape in shapes["denoiser"].items():
        path, _, parameter = name.rpartition(".")
        stem = {
            "flat": f"lora_unet_{path.replace('.', '_')}",
            "flat ldm": f"lora_unet_{ldm[path].replace('.', '_')}",
            "comfy": f"diffusion_model.{ldm[path]}",
            "dotted ldm": f"model.diffusion_model.{ldm[path]}",
            "comfy of a model": f"diffusion_model.{path}",
        }[style]
        if len(shape) == 1:
            tensors[f"{stem}.{'diff' if parameter == 'weight' else 'diff_b'}"] = expected[name] = (
                rng.standard_normal(shape).astype(np.float32)
            )
            continue
        rank = int(rng.integers(1, 4))
        down = rng.standard_normal((rank, *shape[1:])).astype(np.float32)
        up = rng.standard_normal((shape[0], rank, *(1 for _ in shape[2:]))).astype(np.float32)
        tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
        expected[name] = np.tensordot(up.reshape(-1, rank), down, 1)
    save_file(tensors, tmp_path / "a.safetensors")
    actual = changes([read_lora(tmp_path / "a.safetensors")], shapes)["denoiser"]
    assert set(actual) == set(expected)
    for name, change in actual.items():
        result = change.added_to(np.zeros(shapes["denoiser"][name], np.float32))
        np.testing.assert_allclose(result, expected[name], rtol=0, atol=2e-5, err_msg=name)


TEXT = "text_model.encoder.layers.7.self_attn.k_proj"


@pytest.mark.parametrize(
    "stem",
    [
        "lora_te_" + TEXT.replace(".", "_"),
        "lora_te1_" + TEXT.replace(".", "_"),
        f"text_encoder.{TEXT}",
        f"text_encoders.clip_h.transformer.{TEXT}",
        f"clip_h.transformer.{TEXT}",
        TEXT,
    ],
)
def test_names_of_the_text_encoder(tmp_path: Path, stem: str) -> None:
    name = f"{TEXT.removeprefix('text_model.')}.weight"
    shapes: Any = {"denoiser": {}, "text_encoder": {name: (12, 12), name.replace(".7.", ".8."): (12, 12)}}
    difference = np.random.default_rng(1).standard_normal((12, 12)).astype(np.float32)
    save_file({f"{stem}.diff": difference}, tmp_path / "a.safetensors")
    by_part = changes([read_lora(tmp_path / "a.safetensors")], shapes)
    assert {part: set(changed) for part, changed in by_part.items()} == {"text_encoder": {name}}
    actual = by_part["text_encoder"][name].added_to(np.zeros((12, 12), np.float32))
    np.testing.assert_array_equal(actual, difference)


@pytest.mark.parametrize(
    "key",
    [
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight",
    ],
)
def test_a_second_text_encoder_is_of_xl(tmp_path: Path, key: str) -> None:
    save_file({key: np.ones((2, 2), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match="was made for Stable Diffusion XL"):
        read_lora(tmp_path / "a.safetensors")


def test_xl_by_its_widths(tmp_path: Path) -> None:
    """LDM names alone do not tell the model: the width of the text does."""
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    shapes: Any = {
        "denoiser": {
            name: (640, 1024),
            **{f"down_blocks.0.resnets.{i}.conv1.weight": (8, 8, 3, 3) for i in range(2)},
        },
        "text_encoder": {},
    }
    tensors = {f"{key}.lora_up.weight": (640, 4), f"{key}.lora_down.weight": (4, 2048)}
    save_file({key: np.ones(shape, np.float32) for key, shape in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(
        RequestError, match="made for Stable Diffusion XL: its cross-attention takes text 2048"
    ):
        changes([read_lora(tmp_path / "a.safetensors")], shapes)
