"""Compare LoRAs with diffusers, where the same changes are added to the weights directly or by PEFT."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sd2rt.engines.errors import CheckpointError, EngineError, RequestError
from sd2rt.engines.lora.file import read_lora
from sd2rt.engines.lora.merge import merged_weights
from sd2rt.engines.onnxruntime.backend import OnnxRuntimeBackend
from sd2rt.engines.weights.initializers import Weights
from sd2rt.export.checkpoints.arguments import read_loras
from sd2rt.export.checkpoints.changes.lora_merge import with_loras
from sd2rt.export.reference import reference_pipeline
from sd2rt.runtime import Pipeline

from ..lora_files import ATTENTION, CONVOLUTIONS, LINEAR, Layout, Set, draw, write
from .test_images import difference

OPTIONS: dict[str, Any] = {
    "prompt": "a lighthouse on a cliff at dusk",
    "negative_prompt": "blurry",
    "num_inference_steps": 6,
    "output_type": "np",
}
EVERYTHING = {network: LINEAR[network] + CONVOLUTIONS[network] for network in LINEAR}
TEXT = {"unet": [], "text_encoder": LINEAR["text_encoder"]}


@pytest.fixture
def pipe(base: Any) -> Iterator[Pipeline]:
    """A pipeline that is not shared with other tests."""
    with Pipeline.open(base.pipeline.bundle.path, threads=2) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def networks(base: Any) -> dict[str, Any]:
    """Shapes of the bundle's weights, by network."""
    bundle = base.pipeline.bundle
    return {
        network: Weights.of(
            bundle.manifest.parts[part], bundle.file(bundle.manifest.parts[part].onnx)
        ).shapes()
        for network, part in (("unet", "denoiser"), ("text_encoder", "text_encoder"))
    }


def image(pipe: Pipeline) -> Any:
    return pipe(**OPTIONS, seed=5).images


def expected(reference: Any) -> Any:
    return reference(**OPTIONS, generator=torch.Generator().manual_seed(5)).images


def fused(base: Any, *sets: tuple[Set, float]) -> Any:
    """diffusers' pipeline with changes added to its weights, in float64."""
    reference = reference_pipeline(base.checkpoint)
    for factors, scale in sets:
        for (network, module), layer_factors in factors.items():
            model = getattr(reference, network)
            model = getattr(model, "text_model", model)
            layer = model.get_submodule(module)
            changed = layer.weight.double() + scale * torch.from_numpy(layer_factors.delta()).reshape(
                layer.weight.shape
            )
            layer.weight.data = changed.float()
    return reference


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "diffusers-peft"])
def test_images(
    base: Any, pipe: Pipeline, networks: Any, record: Any, tmp_path: Path, layout: Layout
) -> None:
    factors = draw(EVERYTHING, networks)
    plain = image(pipe)
    pipe.load_lora(write(tmp_path / "toy.safetensors", layout, factors), scale=0.8)
    ours = image(pipe)
    record(
        "LoRAs",
        f"base, {layout}, scale 0.8, 6 steps",
        *difference(ours, expected(fused(base, (factors, 0.8)))),
    )
    # The LoRA has to change the image visibly, or the comparison proves nothing.
    assert difference(ours, plain)[1] < 30


def test_several_and_none(base: Any, pipe: Pipeline, networks: Any, record: Any, tmp_path: Path) -> None:
    """Two LoRAs add up, bit for bit the same in either order; unloading restores the images bit for bit."""
    sets = [draw(EVERYTHING, networks, seed=1), draw(LINEAR, networks, seed=2)]
    paths = [write(tmp_path / f"{n}.safetensors", "kohya", factors) for n, factors in enumerate(sets)]
    plain = image(pipe)
    first = pipe.load_lora(paths[0], 0.7)
    alone = image(pipe)
    pipe.load_lora(paths[1], -0.4, "other")
    assert [lora.name for lora in pipe.loras] == ["0", "other"]
    both = image(pipe)
    named = "base, two LoRAs, kohya, scales 0.7 and -0.4, 6 steps"
    record("LoRAs", named, *difference(both, expected(fused(base, (sets[0], 0.7), (sets[1], -0.4)))))
    pipe.unload_lora("other")
    assert pipe.loras == (first,)
    np.testing.assert_array_equal(image(pipe), alone)
    pipe.unload_lora()
    assert not pipe.loras
    np.testing.assert_array_equal(image(pipe), plain)
    pipe.load_lora(paths[1], -0.4)
    pipe.load_lora(paths[0], 0.7)
    np.testing.assert_array_equal(image(pipe), both)
    with Pipeline.open(pipe.bundle.path, loras=pipe.loras) as other:
        np.testing.assert_array_equal(image(other), both)


def test_texts_are_encoded_again(
    base: Any, pipe: Pipeline, networks: Any, record: Any, tmp_path: Path
) -> None:
    factors = draw(TEXT, networks)
    plain = image(pipe)
    denoiser = pipe.engine("denoiser")
    pipe.load_lora(write(tmp_path / "toy.safetensors", "kohya", factors))
    assert pipe.engine("denoiser") is denoiser
    ours = image(pipe)
    record(
        "LoRAs",
        "base, text encoder only, 6 steps",
        *difference(ours, expected(fused(base, (factors, 1)))),
    )
    assert np.abs(ours - plain).max() > 0.01
    pipe.unload_lora("toy")
    np.testing.assert_array_equal(image(pipe), plain)


def test_what_fails_changes_nothing(
    pipe: Pipeline, networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "toy.safetensors", "kohya", draw(LINEAR, networks))
    first = pipe.load_lora(path, 0.5)
    before = image(pipe)
    engines = [pipe.engine("denoiser"), pipe.engine("text_encoder")]
    stray = {("unet", "mid_block.attentions.7.proj_in"): next(iter(draw(ATTENTION, networks).values()))}
    with pytest.raises(RequestError, match="changes 1 layers that this bundle's networks do not have"):
        pipe.load_lora(write(tmp_path / "stray.safetensors", "kohya", stray))
    with pytest.raises(RequestError, match="two LoRAs are named 'toy'"):
        pipe.load_lora(path)
    with pytest.raises(RequestError, match=r"the scale of .* is 1e\+39: use a finite number, up to 1e\+06"):
        pipe.load_lora(path, 1e39, "strong")
    with pytest.raises(RequestError, match="no LoRA is named 'cat'; loaded: toy"):
        pipe.unload_lora("cat")
    load = OnnxRuntimeBackend.open

    def no_room(self: OnnxRuntimeBackend, part: Any, *rest: Any) -> Any:
        if part == "text_encoder":
            raise EngineError("text_encoder cannot be loaded: out of memory")
        return load(self, part, *rest)

    monkeypatch.setattr(OnnxRuntimeBackend, "open", no_room)
    with pytest.raises(EngineError, match="out of memory"):
        pipe.unload_lora()
    assert pipe.loras == (first,)
    assert [pipe.engine("denoiser"), pipe.engine("text_encoder")] == engines
    np.testing.assert_array_equal(image(pipe), before)


def test_waits_for_runs(pipe: Pipeline, networks: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.safetensors", "kohya", draw(LINEAR, networks))
    plain = image(pipe)
    with pipe.stream(**OPTIONS, seed=5) as run:
        next(iter(run))
        with pytest.raises(RequestError, match="in the middle of another run"):
            pipe.load_lora(path)
        loading = threading.Thread(target=pipe.load_lora, args=(path,))
        loading.start()
        # The run in progress finishes with the weights that it started with.
        (output,) = run.result()
    loading.join()
    np.testing.assert_array_equal(output.images, plain)
    assert np.abs(image(pipe) - plain).max() > 0.01
    pipe.close()
    with pytest.raises(RequestError, match="this pipeline is closed"):
        pipe.unload_lora()


def test_built_in_is_equal_to_the_bit(base: Any, networks: Any, tmp_path: Path) -> None:
    """Weights merged by a build equal those that a pipeline replaces at run time, bit for bit."""
    paths = [
        write(tmp_path / f"{seed}.safetensors", "kohya", draw(EVERYTHING, networks, seed=seed))
        for seed in range(2)
    ]
    words = [f"{paths[0]}:0.75", str(paths[1])]
    checkpoint = with_loras(base.checkpoint, read_loras(words))
    merged = merged_weights(base.pipeline.bundle, [read_lora(paths[0], scale=0.75), read_lora(paths[1])])
    states = {
        "denoiser": checkpoint.unet().state_dict(),
        "text_encoder": checkpoint.text_encoder().state_dict(),
    }
    original = {
        "denoiser": base.checkpoint.unet().state_dict(),
        "text_encoder": base.checkpoint.text_encoder().state_dict(),
    }
    for part, state in states.items():
        weights = merged[part]  # type: ignore[index]
        for key, value in state.items():
            name = key.removeprefix("text_model.")
            expected = weights[name] if name in weights else original[part][key].numpy()
            np.testing.assert_array_equal(value.numpy(), expected, err_msg=key)
    added = set(checkpoint.source.items()) - set(base.checkpoint.source.items())
    assert added == {
        ("LoRA 0 at 0.75", read_lora(paths[0]).sha256),
        ("LoRA 1 at 1", read_lora(paths[1]).sha256),
    }
    with pytest.raises(CheckpointError, match="none cannot be read: No such file"):
        read_loras(["none"])


@pytest.mark.parametrize("layout", ["kohya", "diffusers-old", "diffusers", "diffusers-peft"])
def test_as_diffusers_loads_it(
    base: Any, pipe: Pipeline, networks: Any, record: Any, tmp_path: Path, layout: Layout
) -> None:
    """The same file, loaded by diffusers and PEFT.

    All layers have the same alpha, or their rank: with different alphas, diffusers 0.42 misses some layers of kohya's
    layout, and its own layout cannot store them.
    """
    pytest.importorskip("peft")
    layers = ATTENTION if layout == "diffusers-old" else LINEAR
    if layout == "diffusers-peft":
        # With a configuration, diffusers expects the text encoder's names of transformers before 5.6.
        layers = {"unet": LINEAR["unet"]}
    factors = draw(layers, networks, alpha=3.0)
    if layout in ("diffusers-old", "diffusers"):
        factors = {key: type(item)(item.down, item.up, len(item.down)) for key, item in factors.items()}
    path = write(tmp_path / "toy.safetensors", layout, factors)
    reference = reference_pipeline(base.checkpoint)
    reference.load_lora_weights(tmp_path, weight_name=path.name)
    pipe.load_lora(path)
    theirs, plain = expected(reference), image(base.pipeline)
    assert np.abs(theirs - plain).max() > 0.01
    record("LoRAs", f"base, {layout}, loaded by diffusers, 6 steps", *difference(image(pipe), theirs))
