from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.engines.bundle.sampler_config import A1111_SCHEDULES as A1111_SAMPLERS
from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.metadata.infotext import parse_parameters, write_parameters
from sd2rt.runtime.metadata.infotext_import import A1111Settings
from sd2rt.runtime.metadata.sampler_names import SAMPLERS, UNNAMED_SAMPLERS
from sd2rt.runtime.request.request import Request, make_request
from sd2rt.runtime.samplers import SAMPLERS as BUILT_SAMPLERS
from sd2rt.runtime.samplers import schedules_of

FACTS: dict[str, Any] = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "steps": 20,
    "sampler": "euler",
    "schedule": "trailing",
    "eta": 0.0,
    "guidance_scale": 6.5,
    "guidance_rescale": 0.0,
    "seed": 7,
    "width": 512,
    "height": 768,
    "identity": "0123456789abcdef",
    "bundle": "sd21",
    "request": {},
}

# What the interface writes, in the order in which it does.
TEXT = (
    "a (red:1.2) fox,\nat dusk\nNegative prompt: blurry,\nugly\n"
    "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 768x512, "
    "Model hash: 4bdfc29cda, Model: v2-1_512-ema-pruned, Version: v1.10.1"
)


def imported(line: str, prompt: str = "a fox") -> A1111Settings:
    return A1111Settings(parse_parameters(f"{prompt}\nSteps: 20, {line}"))


def test_every_sampler_has_a_name_there_or_keeps_its_own() -> None:
    assert set(BUILT_SAMPLERS) <= {*SAMPLERS, *UNNAMED_SAMPLERS}
    assert not set(SAMPLERS) & set(UNNAMED_SAMPLERS)
    assert len(set(SAMPLERS.values())) == len(SAMPLERS)


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [(name, schedule) for name in BUILT_SAMPLERS for schedule in schedules_of(name)]
    + [(name, None) for name in BUILT_SAMPLERS if not schedules_of(name)],
)
def test_what_is_written_is_read(sampler: str, schedule: str | None) -> None:
    settings = {"variation_seed": 11, "variation_strength": 0.25}
    facts = FACTS | {"sampler": sampler, "schedule": schedule, "strength": 0.5, "request": settings}
    found = A1111Settings(parse_parameters(write_parameters(facts, "1.0")))
    assert found.fields == {
        "prompt": "a fox",
        "negative_prompt": "blurry",
        "num_inference_steps": 20,
        "sampler": sampler,
        **({} if schedule is None else {"schedule": schedule}),
        "guidance_scale": 6.5,
        "strength": 0.5,
        "seed": 7,
        "width": 512,
        "height": 768,
        "rng": "cpu",
        **settings,
    }
    assert (found.model, found.model_hash, found.from_image) == ("sd21", "0123456789", True)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_name_there_is_read_back(sampler: SamplerName) -> None:
    assert imported(f"Sampler: {SAMPLERS[sampler]}, Seed: 1").fields["sampler"] == sampler


def test_schedule_types_are_named_as_there() -> None:
    text = write_parameters(FACTS | {"sampler": "dpmpp-2m", "schedule": "karras"}, "1.0")
    assert "Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5," in text
    assert "Spacing" not in text
    assert "RNG: CPU" in text
    assert "RNG" not in write_parameters(FACTS | {"request": {"rng": "cuda:80"}}, "1.0")
    assert "Clip skip: 2" in write_parameters(FACTS | {"request": {"clip_skip": 1}}, "1.0")
    assert "Sampler: dpmpp-2s," in write_parameters(FACTS | {"sampler": "dpmpp-2s"}, "1.0")


def test_text_of_that_interface() -> None:
    found = A1111Settings(parse_parameters(TEXT))
    expected = {
        "prompt": "a (red:1.2) fox,\nat dusk",
        "negative_prompt": "blurry,\nugly",
        "num_inference_steps": 28,
        "sampler": "dpmpp-2m",
        "guidance_scale": 7.0,
        "seed": 965400086,
        "width": 768,
        "height": 512,
        "rng": "cuda",
    }
    assert expected.items() <= found.fields.items()
    assert (found.model, found.model_hash) == ("v2-1_512-ema-pruned", "4bdfc29cda")
    assert not found.from_image
    make_request(**found.fields)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("Sampler: Euler, RNG: CPU", {"sampler": "euler", "grid": "a1111", "rng": "cpu"}),
        ("Sampler: Euler, RNG: NV", {"rng": "cuda"}),
        ("Sampler: DDIM, Eta DDIM: 0.5", {"sampler": "ddim", "grid": "a1111", "eta": 0.5}),
        ("Sampler: PLMS, Seed: 0", {"sampler": "pndm", "grid": "a1111", "seed": 0}),
        ("Sampler: Euler, Schedule type: SGM Uniform", {"sampler": "euler", "schedule": "sgm-uniform"}),
        ("Sampler: Euler, Schedule type: KL Optimal", {"sampler": "euler", "schedule": "kl-optimal"}),
        ("Sampler: DPM++ 2S a, Schedule type: Karras", {"sampler": "dpmpp-2s-a", "schedule": "karras"}),
        ("Sampler: Restart, Schedule type: Automatic", {"sampler": "restart", "grid": "a1111"}),
        ("Sampler: DPM fast, Schedule type: Beta", {"sampler": "dpm-fast", "schedule": "beta"}),
        ("Sampler: LCM, Schedule type: align_your_steps", {"sampler": "lcm", "schedule": "ays"}),
        (
            "Sampler: DPM++ 2M SDE Heun Karras",
            {"schedule": "karras", "sampler_options": {"solver_type": "heun"}},
        ),
        (
            "Variation seed: 5, Variation seed strength: 0.3, Seed: 4",
            {"variation_seed": 5, "variation_strength": 0.3, "seed": 4},
        ),
        ("Denoising strength: 0.4, Seed: 4", {"strength": 0.4}),
        (
            "Denoising strength: 0.4, Seed: 4, Mask blur: 4, Inpaint area: Only masked, Masked area padding: 40",
            {"strength": 0.4, "only_masked": True, "mask_padding": 40},
        ),
        ('Seed: 4, Model: "a, b: c"', {"seed": 4}),
    ],
)
def test_settings(line: str, fields: dict[str, Any]) -> None:
    assert fields.items() <= imported(f"{line}, Version: v1.10.1").fields.items()


@pytest.mark.parametrize("sampler", ["DPM++ 2M Karras", "DPM++ 2M", "dpmpp-2m"])
def test_names_that_say_the_schedule_too(sampler: str) -> None:
    found = imported(f"Sampler: {sampler}, Seed: 1")
    assert found.fields["sampler"] == "dpmpp-2m"
    karras = "Karras" in sampler
    assert ("schedule" in found.fields) != karras or found.fields["schedule"] == "karras"


@pytest.mark.parametrize(
    ("line", "notes"),
    [
        (
            "Sampler: DPM adaptive",
            [
                "Sampler DPM adaptive is not supported (it chooses its steps by the image): the bundle's default is "
                "used"
            ],
        ),
        ("Sampler: Heun++", ["Sampler Heun++ is unknown: the bundle's default is used"]),
        (
            "Sampler: Euler, Schedule type: Turbo",
            ["Schedule type Turbo is not available for euler: its default is used"],
        ),
        (
            "Sampler: DEIS",
            ["Sampler DEIS is not AUTOMATIC1111's own: noise levels and timesteps may differ"],
        ),
        (
            "Sampler: Euler, Schedule type: Beta, Beta schedule alpha: 0.6, Beta schedule beta: 0.7",
            ["Beta schedule beta: 0.7 is not supported and is ignored"],
        ),
        ("ENSD: 31337", ["ENSD: 31337 is not supported and is ignored"]),
        (
            "Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent",
            [
                "the second pass (Hires upscale: 2) is left out: the size of the first is missing or not supported",
            ],
        ),
        ("Seed: many", ["Seed many is not a valid value and is ignored"]),
        ("CFG scale: nan", ["CFG scale nan is not a valid value and is ignored"]),
        ("Denoising strength: 0", ["Denoising strength 0 is not a valid value and is ignored"]),
        ("RNG: TPU", ["RNG TPU is unknown: a GPU's generator is used"]),
        (
            "Variation seed: x, Variation seed strength: 0.2",
            ["Variation seed x, strength 0.2 is not valid and is ignored"],
        ),
    ],
)
def test_what_cannot_be_honoured_is_said(line: str, notes: list[str]) -> None:
    found = imported(f"{line}, Model: x, Version: v1.10.1")
    assert found.notes == notes
    make_request(**found.fields)


@pytest.mark.parametrize(
    "sampler", ["Euler", "DPM++ 2M", "DPM++ 2M SDE", "DPM++ SDE", "DPM++ 3M SDE", "LCM", "DDIM"]
)
def test_automatic_is_left_to_the_grid(sampler: str) -> None:
    for line in ("Schedule type: Automatic, Version: v1.10.1", "Seed: 1, Version: v1.9.0"):
        found = imported(f"Sampler: {sampler}, CFG scale: 7, {line}")
        assert found.fields["grid"] == "a1111"
        assert "schedule" not in found.fields
        assert found.notes == []


def test_without_schedule_types_levels_were_uniform() -> None:
    for line in ("Seed: 1, Version: v1.8.0", "Seed: 1, RNG: CPU"):
        assert imported(f"Sampler: DPM++ 2M, {line}").fields["schedule"] == "uniform"
    assert imported("Sampler: DPM++ 3M SDE Karras, Seed: 1, Version: v1.8.0").fields["schedule"] == "karras"
    old = imported("Sampler: UniPC, Seed: 1, Version: v1.5.2")
    assert "schedule" not in old.fields
    assert old.notes == [
        "Sampler UniPC of versions before 1.6 had other timesteps: those of later ones are used"
    ]


@pytest.mark.parametrize(
    ("sampler", "schedule"), [(name, each) for name, listed in A1111_SAMPLERS.items() for each in listed]
)
def test_what_is_written_of_that_grid_is_read(sampler: SamplerName, schedule: str) -> None:
    request: dict[str, Any] = {"grid": "a1111"}
    if sampler == "dpmpp-2m-sde":
        request["sampler_options"] = {"solver_type": "heun"}
    facts = FACTS | {"sampler": sampler, "schedule": schedule, "request": request}
    found = A1111Settings(parse_parameters(write_parameters(facts, "1.0")))
    expected = {"sampler": sampler, "grid": "a1111", **request}
    assert expected.items() <= found.fields.items()
    assert found.fields.get("schedule", "automatic") == schedule
    assert found.notes == []


def test_size_that_cannot_be_made() -> None:
    found = imported("Size: 524x768, Seed: 1")
    assert "width" not in found.fields
    assert found.notes == [
        "Size 524x768 is not supported (width 524 is not a multiple of 8 from 64 to 4096: use 520 or 528): "
        "the bundle's default is used"
    ]


@pytest.mark.parametrize("size", [(904, 600), (520, 768), (72, 4088)])
def test_size_in_multiples_of_8(size: tuple[int, int]) -> None:
    found = imported(f"Size: {size[0]}x{size[1]}, Seed: 1")
    assert (found.fields["width"], found.fields["height"]) == size
    assert found.notes == []


def test_clip_skip_says_nothing_of_sd2_but_in_forge() -> None:
    assert "clip_skip" not in imported("Clip skip: 2, Version: v1.10.1").fields
    assert imported("Clip skip: 2, Version: v1.10.1").notes == []
    forge = imported("Clip skip: 2, Version: f2.0.1v1.10.1-previous-659-gc055f2d4")
    if "clip_skip" in Request.model_fields:
        assert forge.fields["clip_skip"] == 1
    else:
        assert forge.notes == ["Clip skip 2 is not a valid value and is ignored"]


def test_syntax_of_the_prompt() -> None:
    plain, weighted = (
        imported("Seed: 1, Version: v1.10.1", prompt) for prompt in ("a fox", "a (red:1.2) fox")
    )
    if "prompt_syntax" in Request.model_fields:
        assert plain.fields["prompt_syntax"] == weighted.fields["prompt_syntax"] == "a1111"
    else:
        assert plain.notes == []
        assert weighted.notes == ["the prompt's syntax, such as weights in parentheses, cannot be honoured"]
    named = imported(
        "Seed: 1, RNG: CPU", "a <lora:fox:0.8>fox<lyco:hen> <lora:cat:1:0.5> <lora:dog:x> <hypernet:b:1>"
    )
    assert named.loras == [("fox", 0.8), ("hen", 1.0), ("cat", 0.5), ("dog", None)]
    assert named.text_scales == {"cat": 1.0}
    assert named.fields["prompt"] == "a fox   "
    assert named.notes == ["the hypernetwork b is not applied"]


def test_a_line_is_settings_where_it_has_three() -> None:
    found = parse_parameters("a ship: the sea, 1885\nSeed: 7, by Turner")
    assert (found.prompt, found.values) == ("a ship: the sea, 1885\nSeed: 7, by Turner", {})
    assert parse_parameters("a\nSteps: 2, Sampler: Euler, Seed: 1\n\na remark").values["Seed"] == "1"


def test_quoted_values() -> None:
    line = 'Steps: 2, Model: "a, \\"b\\": c", Lora hashes: "x: 1, y: 2", Seed: 3, Odd: "open, Size: 64x64'
    assert parse_parameters(f"a\n{line}").values == {
        "Steps": "2",
        "Model": 'a, "b": c',
        "Lora hashes": "x: 1, y: 2",
        "Seed": "3",
        "Odd": '"open',
        "Size": "64x64",
    }


@given(prompt=st.text(), negative=st.text(), seed=st.integers(-(2**63), 2**64 - 1), model=st.text(min_size=1))
def test_any_text_is_read(prompt: str, negative: str, seed: int, model: str) -> None:
    """A file's text is untrusted: any content must be read without errors."""
    facts = FACTS | {"prompt": prompt, "negative_prompt": negative, "seed": seed, "bundle": model}
    found = A1111Settings(parse_parameters(write_parameters(facts, "1.0")))
    assert found.fields["seed"] == seed
    assert all("\n" not in note and note.isprintable() for note in found.notes)


@given(text=st.text(st.sampled_from('aS:,"\\ 1x\n(')))
def test_any_characters_are_read(text: str) -> None:
    found = A1111Settings(parse_parameters(f"{text}\nSteps: 1, Seed: 2, Size: {text}, {text}"))
    try:
        make_request(**found.fields)
    except RequestError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize("piece", ['a: "', 'a: "\\', "a:", ",", "a ", '"', "Steps: 1\n", "\\"])
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    text = "a\nSteps: 1, Seed: 2, " + piece * (1_000_000 // len(piece))
    start = time.perf_counter()
    A1111Settings(parse_parameters(text))
    assert time.perf_counter() - start < 20


def test_a_value_is_quoted_as_json() -> None:
    text = write_parameters(FACTS | {"bundle": "a, b"}, "1.0")
    assert f"Model: {json.dumps('a, b')}," in text


def test_resources_of_civitai() -> None:
    """Its generator writes JSON without quotes around it."""
    text = (
        "a fox\nNegative prompt: blurry\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 768x512, "
        "Clip skip: 2, Created Date: 2024-11-02T10:11:12.0000000Z, Civitai resources: "
        '[{"type":"checkpoint","modelVersionId":1,"modelName":"SD 2.1, 768","modelVersionName":"v1"},'
        '{"type":"lora","weight":0.7,"modelVersionId":2,"modelName":"Ink: fine","modelVersionName":"2"},'
        '{"type":"upscaler","modelVersionId":3,"modelName":"Large"},{"type":"embed","modelVersionId":4}], '
        "Civitai metadata: {}"
    )
    found = A1111Settings(parse_parameters(text))
    assert (found.model, found.loras) == ("SD 2.1, 768", [("Ink: fine", 0.7)])
    assert found.fields["rng"] == "cpu"
    assert found.notes == [
        "Civitai upscaler: Large is not supported and is ignored",
        "Civitai resource: 4 is not supported and is ignored",
    ]


@pytest.mark.parametrize("value", ["[1, 2", '{"a": [}', "[" * 100_000, "{a: 1}, b: [2"])
def test_values_that_begin_as_json(value: str) -> None:
    found = parse_parameters(f"a\nSteps: 20, Sampler: Euler, Seed: 7, Other: {value}, Size: 64x64")
    assert found.values["Seed"] == "7"
    assert found.values["Size"] == "64x64"
