"""The engines planned for a bundle: their sizes, and the ranges of their profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.engines.bundle.engine_entry import Profile
from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import symbols_of
from sd2rt.engines.errors import RequestError
from sd2rt.engines.tensorrt.compile.profiles import Rows, Shapes, parse_batches, plan_engines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", ((1, 1),)),
        ("4", ((1, 4),)),
        ("1,4,8", ((1, 1), (2, 4), (5, 8))),
        ("1-4", ((1, 4),)),
        ("2-2, 4-8", ((2, 2), (4, 8))),
        ("32", ((1, 32),)),
    ],
)
def test_batches(text: str, expected: tuple[tuple[int, int], ...]) -> None:
    assert parse_batches(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "4,4", "8,4", "1,2-1", "a", "1,", "-1", "1-4,2-8", "33", "99999", "1.5"]
)
def test_no_batches(text: str) -> None:
    with pytest.raises(RequestError, match="--batch"):
        parse_batches(text)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=5, unique=True).map(sorted))
def test_buckets_leave_no_batch_out(ends: list[int]) -> None:
    found = [n for least, most in parse_batches(",".join(map(str, ends))) for n in range(least, most + 1)]
    assert found == list(range(1, ends[-1] + 1))


@pytest.fixture(scope="module")
def manifest(small_bundle: Path) -> Manifest:
    return read_manifest(small_bundle)


PARTS: tuple[PartName, ...] = (
    "text_encoder",
    "denoiser",
    "decoder",
    "encoder",
    "tiled_decoder",
    "tiled_encoder",
)


def test_a_shared_engine_has_profiles_of_all_sizes(manifest: Manifest) -> None:
    sizes, batches = ((512, 512), (768, 512), (2048, 512)), ((1, 1), (2, 4))
    plans = plan_engines(manifest, PARTS, Shapes(sizes, batches, shared=True))
    assert [(plan.part, plan.label) for plan in plans] == [
        ("text_encoder", "b1"),
        ("denoiser", "512x512.768x512.2048x512-b1.4"),
        ("decoder", "512x512.768x512-b1"),
        ("encoder", "512x512.768x512-b1"),
        ("tiled_decoder", "1024x512-b1"),
        ("tiled_encoder", "1024x512-b1"),
    ]
    alone = [
        profile
        for plan in plan_engines(manifest, ("denoiser",), Shapes(sizes, batches))
        for profile in plan.profiles
    ]
    shared = plans[1].profiles
    assert [profile.dims for profile in shared] == [profile.dims for profile in alone]
    assert [profile.name for profile in shared[1:3]] == ["512x512, batch 2 to 4", "768x512, batch 1"]
    many = tuple((64 * n, 512) for n in range(1, 12))
    assert plan_engines(manifest, ("denoiser",), Shapes(many, shared=True))[0].label == "11sizes-b1"
    assert plan_engines(manifest, PARTS, Shapes(sizes[:1], batches, shared=True)) == plan_engines(
        manifest, PARTS, Shapes(sizes[:1], batches)
    )


def test_each_size_has_its_denoiser_and_decoder(manifest: Manifest) -> None:
    plans = plan_engines(manifest, PARTS, Shapes(((512, 512), (768, 512)), ((1, 1), (2, 4))))
    assert [(plan.part, plan.label) for plan in plans] == [
        ("text_encoder", "b1"),
        ("denoiser", "512x512-b1.4"),
        ("decoder", "512x512-b1"),
        ("encoder", "512x512-b1"),
        ("denoiser", "768x512-b1.4"),
        ("decoder", "768x512-b1"),
        ("encoder", "768x512-b1"),
    ]
    one, four = plans[1].profiles
    assert one.dims == {
        "B": (1, 1, 1), "h": (64, 64, 64), "w": (64, 64, 64), "R": (1, 2, 2), "L": (77, 77, 77), "P": (1, 1, 1)
    }  # fmt: skip
    assert (four.name, four.dims["B"], four.dims["R"]) == ("batch 2 to 4", (2, 4, 4), (2, 8, 8))
    assert plans[4].profiles[0].dims["w"] == (96, 96, 96)


def test_large_images_go_in_tiles(manifest: Manifest) -> None:
    plans = {plan.part: plan for plan in plan_engines(manifest, PARTS, Shapes(((1536, 768),)))}
    assert set(plans) == {"text_encoder", "denoiser", "tiled_decoder", "tiled_encoder"}
    dims = plans["tiled_decoder"].profiles[0].dims
    assert (dims["h"], dims["w"], dims["M"][0]) == ((96, 96, 96), (128, 128, 128), 1)
    assert plans["denoiser"].profiles[0].dims["w"] == (192, 192, 192)


def test_the_upscaler_goes_in_tiles_all_the_way(small_upscaler_bundle: Path) -> None:
    plans = plan_engines(
        read_manifest(small_upscaler_bundle), ("denoiser", "decoder"), Shapes(((2048, 1024),))
    )
    assert [(plan.part, plan.label) for plan in plans] == [("denoiser", "512x512-b1")]


@pytest.mark.parametrize(
    ("rows", "least", "tuned", "most"), [("any", 2, 8, 8), ("guided", 4, 8, 8), ("unguided", 2, 4, 4)]
)
def test_rows(manifest: Manifest, rows: Rows, least: int, tuned: int, most: int) -> None:
    (plan,) = plan_engines(manifest, ("denoiser",), Shapes(((512, 512),), ((2, 4),), rows))
    assert plan.profiles[0].dims["R"] == (least, tuned, most)


def test_long_and_composed_prompts(manifest: Manifest) -> None:
    (plan,) = plan_engines(manifest, ("denoiser",), Shapes(((512, 512),), chunks=3, prompts=2))
    dims = plan.profiles[0].dims
    assert (dims["L"], dims["P"], dims["R"]) == ((77, 77, 231), (1, 1, 2), (1, 2, 3))


def test_every_part_has_a_range_for_every_symbol(manifest: Manifest) -> None:
    for size in ((512, 512), (2048, 2048)):
        for plan in plan_engines(manifest, PARTS, Shapes((size,))):
            assert set(plan.profiles[0].dims) == set(symbols_of(manifest.parts[plan.part]))


def test_a_profile_takes_what_is_within_it() -> None:
    profile = Profile(name="batch 2 to 4", dims={"B": (2, 4, 4), "h": (64, 64, 64)})
    assert profile.takes({"B": 2, "h": 64})
    assert not profile.takes({"B": 1, "h": 64})
    assert not profile.takes({"B": 5, "h": 64})
    assert not profile.takes({"B": 3, "h": 72})


def test_a_profile_whose_range_is_upside_down() -> None:
    with pytest.raises(ValueError, match="B has minimum 4, optimum 2, maximum 8, which are not in order"):
        Profile(name="a", dims={"B": (4, 2, 8)})
