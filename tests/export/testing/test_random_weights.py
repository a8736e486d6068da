from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPTextModel

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.checkpoints.ldm.keys import ldm_layout
from sd2rt.export.checkpoints.networks import skeleton
from sd2rt.export.checkpoints.pipeline_configs import PARTS, PipelineConfigs
from sd2rt.export.checkpoints.tiny_configs import DEMO, DEMO_SEED, DEMO_V, DEMOS, SMALL, SMALL_V, SMALLS
from sd2rt.export.testing.folder_writer import WEIGHT_FILES
from sd2rt.export.testing.random_weights import RandomWeights, draw, random_checkpoint
from sd2rt.export.testing.safetensors_writer import Entry, write_safetensors

ALL = {"small": SMALL, "small-v": SMALL_V, "demo": DEMO, "demo-v": DEMO_V}
FILES = [WEIGHT_FILES[part] for part in PARTS]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_one_seed_gives_the_same_bytes_and_another_gives_others(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    again = random_checkpoint(tmp_path / "again", configs=SMALL, seed=1)
    other = random_checkpoint(tmp_path / "other", configs=SMALL, seed=2)

    assert _files(again) == _files(small_checkpoint)
    for file in FILES:
        assert (other / file).read_bytes() != (again / file).read_bytes()


def test_no_two_weights_share_their_draws() -> None:
    shape = (4, 4)
    drawn = [
        draw(0, "unet", "a", shape),
        draw(0, "vae", "a", shape),
        draw(0, "unet", "b", shape),
        draw(1, "unet", "a", shape),
    ]
    assert not any(torch.equal(x, y) for i, x in enumerate(drawn) for y in drawn[:i])


def test_the_folder_is_one_that_diffusers_and_transformers_load(small_checkpoint: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(small_checkpoint, local_files_only=True)
    ours = open_checkpoint(str(small_checkpoint))

    for part in PARTS:
        theirs, own = getattr(pipeline, part).state_dict(), getattr(ours, part)().state_dict()
        assert theirs.keys() == own.keys()
        assert all(torch.equal(theirs[key], own[key]) for key in own)


def test_legacy_keys_are_those_of_2022(legacy_folder: Path) -> None:
    with safe_open(legacy_folder / WEIGHT_FILES["text_encoder"], "pt") as text:
        assert all(key.startswith("text_model.") for key in text.keys())  # noqa: SIM118
        assert text.get_tensor("text_model.embeddings.position_ids").tolist() == [list(range(77))]
    with safe_open(legacy_folder / WEIGHT_FILES["vae"], "pt") as vae:
        attention = {key.split(".")[4] for key in vae.keys() if "attentions" in key}  # noqa: SIM118
    assert attention == {"group_norm", "query", "key", "value", "proj_attn"}


def test_a_single_file_has_what_published_ones_have(small_file: Path) -> None:
    tensors = load_file(small_file)

    text = "cond_stage_model.model."
    assert {int(key.split(".")[4]) for key in tensors if ".resblocks." in key} == {0, 1, 2, 3}
    assert tensors[text + "transformer.resblocks.3.attn.in_proj_weight"].shape == (96, 32)
    assert tensors[text + "text_projection"].shape == (32, 32)
    assert tensors[text + "logit_scale"].shape == ()
    assert tensors[text + "positional_embedding"].shape == (77, 32)
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (24, 24, 1, 1)
    assert tensors["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (16, 16)
    alphas = tensors["alphas_cumprod"]
    assert alphas.shape == (1000,)
    # First and last values of the published buffers.
    assert alphas[0].item() == pytest.approx(0.99915, abs=1e-6)
    assert alphas[-1].item() == pytest.approx(0.0047, abs=1e-4)


def test_a_single_file_of_each_kind_has_what_published_ones_have(
    kind_file: Callable[[ModelKind], Path],
) -> None:
    unet = "model.diffusion_model."
    assert load_file(kind_file("inpainting"))[unet + "input_blocks.0.0.weight"].shape == (16, 9, 3, 3)

    depth = load_file(kind_file("depth"))
    assert depth[unet + "input_blocks.0.0.weight"].shape == (16, 5, 3, 3)
    midas = "depth_model.model."
    assert depth[midas + "pretrained.model.blocks.0.attn.qkv.weight"].shape == (96, 32)
    assert depth[midas + "pretrained.model.head.weight"].shape == (1000, 32)
    assert depth[midas + "scratch.output_conv.4.bias"].item() > 1

    upscaler = load_file(kind_file("upscaler"))
    assert upscaler[unet + "input_blocks.0.0.weight"].shape == (16, 7, 3, 3)
    assert upscaler[unet + "label_emb.weight"].shape == (1000, 64)
    # The first level has no attention. In the others except the last, attn1 attends to the text too.
    assert unet + "input_blocks.1.1.norm.weight" not in upscaler
    attention = "1.transformer_blocks.0.attn1.to_k.weight"
    assert upscaler[f"{unet}input_blocks.3.{attention}"].shape == (24, 32)
    assert "first_stage_model.decoder.up.3.block.0.conv1.weight" not in upscaler
    noised = upscaler["low_scale_model.alphas_cumprod"]
    assert noised.shape == (1000,)
    assert noised[0].item() == pytest.approx(1 - 1e-4)


@pytest.mark.parametrize("kind", ["inpainting", "depth", "upscaler"])
def test_the_folders_are_those_that_diffusers_loads(
    kind: ModelKind, kind_folder: Callable[[ModelKind], Path]
) -> None:
    folder = kind_folder(kind)
    classes = {
        "inpainting": StableDiffusionInpaintPipeline,
        "depth": StableDiffusionDepth2ImgPipeline,
        "upscaler": StableDiffusionUpscalePipeline,
    }
    # The image processor would need torchvision.
    options = {"feature_extractor": None} if kind == "depth" else {}
    pipeline = classes[kind].from_pretrained(folder, local_files_only=True, **options)
    ours = open_checkpoint(str(folder))

    for part in SMALLS[kind].parts:
        theirs, own = getattr(pipeline, part).state_dict(), getattr(ours, part)().state_dict()
        assert theirs.keys() == own.keys()
        assert all(torch.equal(theirs[key], own[key]) for key in own)
    assert pipeline.vae.config.scaling_factor == ours.vae().config.scaling_factor
    if ours.low_resolution is not None:
        assert pipeline.config.max_noise_level == ours.low_resolution.max_noise_level


@pytest.mark.parametrize("configs", [SMALLS["depth"], DEMOS["depth"]], ids=["small", "demo"])
@pytest.mark.parametrize("seed", range(4))
def test_depths_are_positive_and_vary_with_the_image(configs: PipelineConfigs, seed: int) -> None:
    network = skeleton("depth_estimator", configs.part("depth_estimator"))
    network.load_state_dict(RandomWeights(configs, seed).tensors("depth_estimator"), assign=True)
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1 for _ in range(2)]
    with torch.no_grad():
        one, other = (network.eval()(F.interpolate(x, size=384)).predicted_depth for x in images)
    for depth in (one, other):
        assert depth.shape == (1, 384, 384)
        assert depth.min() > 0
        assert depth.std() > 0.1
    assert (one - other).abs().mean() > 0.1


def test_half_precision_rounds_the_same_weights(small_checkpoint: Path, tmp_path: Path) -> None:
    half = random_checkpoint(tmp_path / "half", configs=SMALL, seed=1, dtype=torch.float16)
    for file in FILES:
        exact, rounded = load_file(small_checkpoint / file), load_file(half / file)
        assert all(torch.equal(exact[key].half(), rounded[key]) for key in exact)
        assert (half / file).stat().st_size < 0.52 * (small_checkpoint / file).stat().st_size


def test_every_network_fits_sd2_and_no_weight_is_trivial() -> None:
    for configs in (*SMALLS.values(), *DEMOS.values()):
        weights = RandomWeights(configs, 0)
        for part in configs.parts:
            for key, tensor in weights.tensors(part).items():
                assert tensor.isfinite().all(), key
                assert tensor.numel() == 1 or tensor.std() > 0, key


@pytest.mark.parametrize("kind", DEMOS)
def test_the_demo_is_small(kind: ModelKind) -> None:
    configs = DEMOS[kind]
    weights = RandomWeights(configs, DEMO_SEED)
    parameters = sum(
        torch.Size(shape).numel() for part in configs.parts for shape in weights.shapes(part).values()
    )
    table = 49408 * int(configs.text_encoder["hidden_size"])
    assert (parameters - table) * 4 < 30e6
    assert configs.native_size == 128


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run on one thread: networks this small run slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Networks = tuple[CLIPTextModel, UNet2DConditionModel, AutoencoderKL]


def _image(
    checkpoint: Checkpoint, networks: Networks, prompt: list[int], noise: torch.Tensor, steps: int = 5
) -> torch.Tensor:
    """An image [3, H, W] by a plain implementation of DDIM with guidance."""
    text_encoder, unet, vae = networks
    betas = torch.linspace(checkpoint.noise.beta_start**0.5, checkpoint.noise.beta_end**0.5, 1000) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    ids = torch.tensor([[49406, *prompt, 49407, *[0] * (75 - len(prompt))], [49406, 49407, *[0] * 75]])
    latents = noise
    with torch.no_grad():
        text = text_encoder(ids).last_hidden_state
        for step in reversed(range(steps)):
            time = step * (1000 // steps) + 1
            a, b = alphas[time], alphas[max(time - 1000 // steps, 0)]
            conditional, unconditional = unet(latents.repeat(2, 1, 1, 1), time, text).sample
            output = unconditional + 7.5 * (conditional - unconditional)
            if checkpoint.variant == "v":
                output = a.sqrt() * output + (1 - a).sqrt() * latents
            clean = (latents - (1 - a).sqrt() * output) / a.sqrt()
            latents = b.sqrt() * clean + (1 - b).sqrt() * output
        return vae.decode(latents / vae.config.scaling_factor).sample[0]  # type: ignore[no-any-return]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ALL)
def test_images_are_lively_and_in_range(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(random_checkpoint(tmp_path, configs=ALL[name], seed=DEMO_SEED)))
    side = checkpoint.native_size // 8
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))

    networks = checkpoint.text_encoder(), checkpoint.unet(), checkpoint.vae()
    image = _image(checkpoint, networks, [320, 1125], noise)
    assert image.isfinite().all()
    assert 0.2 < image.std() < 0.6
    assert (image.abs() > 1).float().mean() < 0.1
    assert (image.amax((1, 2)) - image.amin((1, 2))).min() > 1.0

    # The prompt matters, and a small change of the noise stays small: rounding errors are not amplified.
    assert (_image(checkpoint, networks, [2368, 518], noise) - image).std() > 0.02
    assert (_image(checkpoint, networks, [320, 1125], noise * (1 + 1e-4)) - image).abs().max() < 0.01


@pytest.mark.parametrize("name", ALL)
def test_the_encoder_gives_latents_of_the_trained_scale(name: str) -> None:
    weights = RandomWeights(ALL[name], 3)
    side = ALL[name].native_size
    vae = skeleton("vae", ALL[name].vae)
    vae.load_state_dict(weights.tensors("vae"), assign=True)
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).tanh()
    with torch.no_grad():
        moments = vae.encode(image).latent_dist  # type: ignore[operator]
    assert 0.3 < (moments.mean * 0.18215).std() < 3
    assert moments.std.max() < 0.5


def test_the_writer_writes_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(()), "n": torch.arange(4), "e": torch.zeros(0, 2)}
    entries = [
        Entry(key, tuple(tensor.shape), tensor.clone, integer=tensor.dtype == torch.int64)
        for key, tensor in tensors.items()
    ]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with (tmp_path / "ours").open("wb") as stream:
            write_safetensors(stream, entries, dtype)
        kept = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
        save_file(kept, tmp_path / "theirs", metadata={"format": "pt"})
        ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "name",
    [
        "stable-diffusion-2-1",
        "stable-diffusion-2-inpainting",
        "stable-diffusion-2-depth",
        "stable-diffusion-x4-upscaler",
    ],
)
def test_the_layout_maps_every_weight_of_the_full_size_networks_to_one_place(name: str) -> None:
    configs = PipelineConfigs.packaged(name)
    for part in configs.parts:
        keys = list(skeleton(part, configs.part(part)).state_dict())
        layout = ldm_layout(part, keys, configs)
        members = [member for tensor in layout for member in tensor.members]
        assert sorted(members) == sorted(keys)
        assert len({tensor.key for tensor in layout}) == len(layout)
