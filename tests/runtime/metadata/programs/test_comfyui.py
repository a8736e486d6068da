from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime import read_recipe
from sd2rt.runtime.samplers import SamplingOptions
from sd2rt.runtime.samplers.a1111.level_lists import level_list
from sd2rt.runtime.samplers.a1111.model_levels import ModelLevels
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule

from .files import NOISE_CONFIG, model_sigmas, recipe_of

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(**changes: dict[str, Any] | None) -> Graph:
    """The default graph of its interface, as its API form, with other nodes in the place of some."""
    nodes = {
        "3": node(
            "KSampler",
            seed=156680208700286,
            steps=20,
            cfg=8.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd2\\v2-1_768-ema-pruned.safetensors"),
        "5": node("EmptyLatentImage", width=768, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="beautiful scenery", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="text, watermark", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }
    for name, changed in changes.items():
        nodes[name.removeprefix("n")] = changed or {}
    return nodes


def sampler(**inputs: Any) -> dict[str, Any]:
    changed = copy.deepcopy(graph()["3"])
    changed["inputs"] |= inputs
    return changed


FIELDS = {
    "prompt": "beautiful scenery",
    "negative_prompt": "text, watermark",
    "prompt_syntax": "a1111",
    "rng": "cpu",
    "seed": 156680208700286,
    "num_inference_steps": 20,
    "guidance_scale": 8.0,
    "sampler": "dpmpp-2m",
    "schedule": "karras",
    "grid": "a1111",
    "width": 768,
    "height": 512,
}
NOISE = (
    "ComfyUI starts from noise that is stronger by 0.2 % than in the grid a1111: the picture is close, "
    "not the same"
)


def test_default_graph(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, prompt=graph(), workflow={"nodes": []})
    assert recipe.fields == FIELDS
    assert recipe.notes == (NOISE,)
    assert (recipe.bundle, recipe.identity, recipe.program) == ("v2-1_768-ema-pruned", None, "ComfyUI")
    assert not recipe.inputs


def test_webp_of_its_saver(tmp_path: Path) -> None:
    """SaveAnimatedWEBP writes the graph to the camera's model, and others to the tags before it."""
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(graph())
    exif[0x010F] = "workflow:{}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read_recipe(tmp_path / "a.webp").fields == FIELDS


def test_values_from_other_nodes(tmp_path: Path) -> None:
    nodes = graph(
        n3=sampler(seed=["20", 0], steps=["21", 0], positive=["30", 0]),
        n20=node("PrimitiveInt", value=7),
        n21=node("Reroute", **{"": ["22", 0]}),
        n22=node("Int", Value=12),
        n30=node("Reroute", **{"": ["6", 0]}),
        n6=node("CLIPTextEncode", text=["23", 0], clip=["4", 1]),
        n23=node("StringConcatenate", string_a="a red", string_b=["24", 0], delimiter=" "),
        n24=node("PrimitiveString", value="fox"),
        n5=node("EmptyLatentImage", width=["25", 0], height=512, batch_size=1),
        n25=node("PrimitiveInt", value=640),
    )
    recipe = recipe_of(tmp_path, prompt=nodes)
    changed = {"seed": 7, "num_inference_steps": 12, "prompt": "a red fox", "width": 640}
    assert recipe.fields == FIELDS | changed
    assert recipe.notes == (NOISE,)


def test_loras_and_last_layer(tmp_path: Path) -> None:
    nodes = graph(
        n3=sampler(model=["10", 0]),
        n10=node(
            "LoraLoader",
            lora_name="style/ink.safetensors",
            strength_model=0.8,
            strength_clip=0.5,
            model=["11", 0],
            clip=["4", 1],
        ),
        n11=node("LoraLoaderModelOnly", lora_name="fox.safetensors", strength_model=1.0, model=["4", 0]),
        n6=node("CLIPTextEncode", text="a fox", clip=["12", 0]),
        n12=node("CLIPSetLastLayer", stop_at_clip_layer=-4, clip=["10", 1]),
    )
    recipe = recipe_of(tmp_path, prompt=nodes)
    assert [(lora.name, lora.scale, lora.text_scale) for lora in recipe.loras] == [
        ("ink", 0.8, 0.5),
        ("fox", 1.0, 0.0),
    ]
    assert recipe.fields["clip_skip"] == 2
    assert recipe.bundle == "v2-1_768-ema-pruned"
    assert not any("LoRA" in note for note in recipe.notes)


@pytest.mark.parametrize(
    ("steps", "denoise"), [(20, 0.6), (20, 0.87), (30, 0.2), (7, 0.33), (25, 1.0), (1, 0.5), (40, 0.05)]
)
@pytest.mark.parametrize("name", ["euler", "heun", "lms"])
def test_start_from_an_image_visits_its_levels(steps: int, denoise: float, name: str, tmp_path: Path) -> None:
    """int(steps / denoise) levels are laid out, of which the last steps + 1 are visited."""
    nodes = graph(
        n3=sampler(steps=steps, denoise=denoise, sampler_name=name, latent_image=["13", 0]),
        n13=node("VAEEncode", pixels=["14", 0], vae=["4", 2]),
        n14=node("LoadImage", image="photo.png", upload="image"),
    )
    recipe = recipe_of(tmp_path, prompt=nodes)
    assert recipe.inputs == {"image": None}
    fields = recipe.fields
    total = int(steps / denoise)
    assert fields["num_inference_steps"] == total
    options = SamplingOptions(
        num_inference_steps=total, strength=fields["strength"], a1111=fields["schedule"]
    )
    levels = level_list(fields["sampler"], ModelLevels(NoiseSchedule(NOISE_CONFIG)), options).levels
    sigmas = model_sigmas()
    low, high = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
    whole = [*(high + np.linspace(0, 1, total) * (low - high)) ** 7, 0]
    np.testing.assert_allclose(levels, whole[-(steps + 1) :], rtol=2e-5)


def test_masks_and_missing_sizes(tmp_path: Path) -> None:
    nodes = graph(
        n3=sampler(latent_image=["13", 0], denoise=0.5),
        n13=node("SetLatentNoiseMask", samples=["15", 0], mask=["14", 1]),
        n15=node("VAEEncode", pixels=["14", 0], vae=["4", 2]),
        n14=node("LoadImage", image="photo.png"),
    )
    assert recipe_of(tmp_path, prompt=nodes).inputs == {"image": None, "mask_image": None}
    recipe = recipe_of(tmp_path, prompt=graph(n5={}))
    assert "width" not in recipe.fields
    assert "the size cannot be read: the bundle's default is used" in recipe.notes


def test_advanced_sampler_and_its_second_half(tmp_path: Path) -> None:
    advanced = {
        "add_noise": "enable",
        "noise_seed": 11,
        "steps": 24,
        "cfg": 7,
        "sampler_name": "euler",
        "scheduler": "normal",
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
    }
    first = node(
        "KSamplerAdvanced",
        **advanced,
        latent_image=["5", 0],
        start_at_step=0,
        end_at_step=10,
        return_with_leftover_noise="enable",
    )
    second = node(
        "KSamplerAdvanced",
        **(advanced | {"add_noise": "disable", "noise_seed": 99, "cfg": 5}),
        latent_image=["2", 0],
        start_at_step=10,
        end_at_step=10000,
        return_with_leftover_noise="disable",
    )
    recipe = recipe_of(tmp_path, prompt=graph(n2=first, n3=second))
    expected = {
        "seed": 11,
        "num_inference_steps": 24,
        "guidance_scale": 5.0,
        "width": 768,
        "schedule": "normal",
    }
    assert expected.items() <= recipe.fields.items()
    assert "the first steps were made with another cfg: those of the last ones are used" in recipe.notes
    started = copy.deepcopy(first)
    started["inputs"] |= {"start_at_step": 10, "end_at_step": 10000, "latent_image": ["13", 0]}
    nodes = graph(n3=started, n13=node("VAEEncode", pixels=["14", 0]), n14=node("LoadImage", image="a.png"))
    fields = recipe_of(tmp_path, prompt=nodes).fields
    assert int(fields["strength"] * fields["num_inference_steps"]) + 1 == 24 - 10


def test_custom_sampler(tmp_path: Path) -> None:
    nodes = graph(
        n3=node(
            "SamplerCustomAdvanced",
            noise=["40", 0],
            guider=["41", 0],
            sampler=["42", 0],
            sigmas=["43", 0],
            latent_image=["5", 0],
        ),
        n40=node("RandomNoise", noise_seed=3),
        n41=node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=4.5),
        n42=node("KSamplerSelect", sampler_name="euler"),
        n43=node("BasicScheduler", model=["4", 0], scheduler="sgm_uniform", steps=9, denoise=1.0),
    )
    expected = {
        "seed": 3,
        "guidance_scale": 4.5,
        "sampler": "euler",
        "schedule": "sgm-uniform",
        "num_inference_steps": 9,
    }
    recipe = recipe_of(tmp_path, prompt=nodes)
    assert recipe.fields == FIELDS | expected
    assert recipe.bundle == "v2-1_768-ema-pruned"


def test_conditions(tmp_path: Path) -> None:
    nodes = graph(
        n3=sampler(positive=["30", 0], negative=["35", 0]),
        n30=node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["31", 0]),
        n31=node("ConditioningConcat", conditioning_to=["32", 0], conditioning_from=["33", 0]),
        n32=node("CLIPTextEncode", text="a BREAK [fox] AND embedding:fur.pt", clip=["4", 1]),
        n33=node("CLIPTextEncode", text="(snow:1.2)", clip=["4", 1]),
        n35=node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=1.0),
    )
    recipe = recipe_of(tmp_path, prompt=nodes)
    assert (
        recipe.fields["prompt"] == r"beautiful scenery :0.5 AND a break \[fox\] and fur BREAK (snow:1.2) :0.5"
    )
    assert recipe.fields["negative_prompt"] == "text, watermark"
    assert list(recipe.embeddings) == ["fur"]
    assert recipe.notes[:3] == (
        "weights of the prompt: ComfyUI scales the distance from an empty prompt, here AUTOMATIC1111's rule is used; "
        "the picture differs",
        "combined conditions are joined by AND, each with an equal share",
        "the ControlNet of ControlNetApplyAdvanced is not applied",
    )


NOT_HONOURED = {
    "an upscaler after it": (
        {"n9": node("SaveImage", images=["50", 0]), "n50": node("ImageUpscaleWithModel", image=["8", 0])},
        "ImageUpscaleWithModel after the sampler is not applied",
    ),
    "a patched model": (
        {
            "n3": sampler(model=["50", 0]),
            "n50": node("ModelSamplingDiscrete", sampling="v_prediction", model=["4", 0]),
        },
        "ModelSamplingDiscrete of the model is not applied",
    ),
    "another VAE": (
        {
            "n8": node("VAEDecode", samples=["3", 0], vae=["50", 0]),
            "n50": node("VAELoader", vae_name="mse.pt"),
        },
        "VAE: mse.pt is not supported and is ignored",
    ),
    "a sampler": (
        {"n3": sampler(sampler_name="res_multistep")},
        "Sampler res_multistep of ComfyUI is not supported",
    ),
    "noise on a GPU": (
        {"n3": sampler(sampler_name="euler_ancestral")},
        "draws the noise of its steps on the GPU",
    ),
    "a scheduler": (
        {"n3": sampler(scheduler="linear_quadratic")},
        "Scheduler linear_quadratic is not supported",
    ),
    "beta": ({"n3": sampler(scheduler="beta")}, "Scheduler beta: ComfyUI rounds its quantiles"),
    "a batch": (
        {"n5": node("EmptyLatentImage", width=768, height=512, batch_size=4)},
        "batch_size 4: the first picture is made, whichever this one is",
    ),
    "a size": ({"n5": node("EmptyLatentImage", width=500, height=512)}, "size 500x512 is not supported"),
    "a condition": (
        {
            "n3": sampler(positive=["50", 0]),
            "n50": node("ConditioningSetArea", conditioning=["6", 0], width=64),
        },
        "ConditioningSetArea is not applied to the positive prompt",
    ),
    "zeros": (
        {"n3": sampler(negative=["50", 0]), "n50": node("ConditioningZeroOut", conditioning=["6", 0])},
        "the negative condition of zeros is not available",
    ),
    "a prompt of a language model": (
        {"n6": node("CLIPTextEncode", text=["50", 0]), "n50": node("AskModel", question=["51", 0])},
        "the positive prompt of CLIPTextEncode cannot be read",
    ),
    "a part of the steps": ({"n3": sampler(denoise=0.5)}, "denoise 0.5 from an empty image is not supported"),
}


@pytest.mark.parametrize("name", NOT_HONOURED)
def test_nothing_is_silent(name: str, tmp_path: Path) -> None:
    changes, note = NOT_HONOURED[name]
    recipe = recipe_of(tmp_path, prompt=graph(**changes))
    assert any(note in said for said in recipe.notes), recipe.notes


def test_links_that_lead_nowhere_or_around(tmp_path: Path) -> None:
    around = {name: node("Reroute", **{"": [name, 0]}) for name in ("60", "61")}
    nodes = (
        graph(n3=sampler(model=["60", 0], positive=["99", 0], negative=["62", 0], seed=["61", 0])) | around
    )
    nodes["62"] = node("ConditioningSetMask", conditioning=["62", 0])
    nodes["63"] = node("KSampler", latent_image=["63", 0])
    recipe = recipe_of(tmp_path, prompt=nodes)
    assert recipe.fields["prompt"] == recipe.fields["negative_prompt"] == ""
    assert recipe.bundle is None


def second(**inputs: Any) -> dict[str, Any]:
    changes = {"seed": 77, "steps": 14, "denoise": 0.5, "sampler_name": "euler", "scheduler": "normal"}
    return sampler(**(changes | {"latent_image": ["50", 0]} | inputs))


def test_two_samplers_are_two_passes(tmp_path: Path) -> None:
    nodes = graph(
        n3=second(),
        n50=node("LatentUpscaleBy", samples=["51", 0], upscale_method="bicubic", scale_by=1.5),
        n51=sampler(),
    )
    recipe = recipe_of(tmp_path, prompt=nodes)
    assert recipe.fields == FIELDS
    assert not recipe.inputs
    assert recipe.second_pass is not None
    assert recipe.second_pass.method == "bicubic"
    fields = dict(recipe.second_pass.fields)
    # 14 of 28 levels are visited.
    assert 1 + int(fields.pop("strength") * 28) == 14
    expected = {"seed": 77, "num_inference_steps": 28, "sampler": "euler", "schedule": "normal"}
    assert fields == expected | {"width": 1152, "height": 768}
    assert recipe.notes == (NOISE,)


def image_scale(method: str, height: int) -> dict[str, Any]:
    return node(
        "ImageScale", image=["52", 0], upscale_method=method, width=1536, height=height, crop="disabled"
    )


def latent_upscale(method: str, **size: float) -> dict[str, Any]:
    kind = "LatentUpscaleBy" if "scale_by" in size else "LatentUpscale"
    return node(kind, samples=["51", 0], upscale_method=method, **size)


@pytest.mark.parametrize(
    ("node_between", "method", "note"),
    [
        (image_scale("lanczos", 1024), "lanczos", None),
        (image_scale("area", 0), "lanczos", "area"),
        (latent_upscale("bislerp", width=1536, height=1024), "bilinear", "bislerp"),
        (node("ImageUpscaleWithModel", image=["52", 0]), None, "left out: a model enlarged its picture"),
        (latent_upscale("bilinear", scale_by=6), None, "left out: width 4608"),
    ],
)
def test_ways_between_two_samplers(
    node_between: dict[str, Any], method: str | None, note: str | None, tmp_path: Path
) -> None:
    nodes = graph(
        n3=second(latent_image=["53", 0] if "image" in node_between["inputs"] else ["50", 0]),
        n50=node_between,
        n51=sampler(),
        n52=node("VAEDecode", samples=["51", 0], vae=["4", 2]),
        n53=node("VAEEncode", pixels=["50", 0], vae=["4", 2]),
    )
    recipe = recipe_of(tmp_path, prompt=nodes)
    assert recipe.fields == FIELDS
    assert (None if recipe.second_pass is None else recipe.second_pass.method) == method
    if method is not None:
        assert recipe.second_pass is not None
        assert (recipe.second_pass.fields["width"], recipe.second_pass.fields["height"]) == (1536, 1024)
    assert note is None or any(note in said for said in recipe.notes)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["3", "4", "6", "9", "karras", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "3", "inputs"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 11), _JSON), min_size=1, max_size=4))
def test_altered_graphs_are_read_or_refused(tmp_path: Path, changes: list[tuple[int, int, Any]]) -> None:
    nodes = graph(
        n10=node(
            "LoraLoader", lora_name="a", model=["4", 0], clip=["4", 1], strength_model=1, strength_clip=1
        )
    )
    names = list(nodes)
    for place, key, value in changes:
        inputs = nodes[names[place]]["inputs"]
        inputs[list(inputs)[key % len(inputs)]] = value
    try:
        recipe = recipe_of(tmp_path, prompt=nodes)
    except RequestError as error:
        said = [str(error)]
    else:
        said = list(recipe.notes)
    assert all("\n" not in line for line in said)
