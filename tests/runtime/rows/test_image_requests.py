from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.cli import run_generation
from sd2rt.runtime.request.call import split_call
from sd2rt.runtime.request.fields import CallOptions
from sd2rt.runtime.request.planned import plan_requests
from sd2rt.runtime.rows.image_requests import ImageRequests

from ..conftest import Command, Refused

VARIATION = {"variation_seed": 9, "variation_strength": 0.5}


@given(
    prompts=st.lists(st.text("ab", max_size=3), min_size=1, max_size=4),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    size=st.integers(1, 5),
    fields=st.sampled_from([{}, VARIATION, {"negative_prompt": "no", "num_inference_steps": 3}]),
)
def test_requests_are_those_of_one_call(
    small_bundle: Path, prompts: list[str], count: int, seed: int, size: int, fields: dict[str, Any]
) -> None:
    manifest = read_manifest(small_bundle)
    every = [prompt for prompt in prompts for _ in range(count)]
    expected = plan_requests(split_call(every, cast(CallOptions, {**fields, "seed": seed})), manifest)
    requests = ImageRequests(prompts, count, fields, seed)
    batches = list(requests.planned(manifest).batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    planned = [item for batch in batches for item in batch]
    assert len(planned) == len(requests)
    for ours, theirs in zip(planned, expected, strict=True):
        assert ours.request.model_dump() == theirs.request.model_dump()
        assert (ours.task, ours.build_key) == (theirs.task, theirs.build_key)
        assert len(ours.plan.steps) == len(theirs.plan.steps)


def test_memory_does_not_grow_with_the_count(small_bundle: Path) -> None:
    manifest = read_manifest(small_bundle)
    ImageRequests(["a"], 1, {}, 0).planned(manifest)
    tracemalloc.start()
    planned = ImageRequests(["a"], 10**9, {}, 0).planned(manifest)
    first = next(planned.batches(4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(planned) == 10**9
    assert [item.request.seed for item in first] == [0, 1, 2, 3]
    assert peak < 4 << 20


@pytest.mark.parametrize("count", [0, -1])
def test_no_images(count: int) -> None:
    with pytest.raises(RequestError, match=f"--count is {count}: give at least 1"):
        ImageRequests(["a"], count, {}, 0)


def test_each_prompt_is_checked_before_the_first_image(sd2rt: Command) -> None:
    with pytest.raises(RequestError, match="prompts cannot load files"):
        ImageRequests(["a", "b <lora:x:1>"], 1, {"prompt_syntax": "a1111"}, 0)


def test_ten_million_images(
    sd2rt: Command, small_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batches are saved at once."""
    own, calls = run_generation.make, 0

    def make(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(run_generation, "make", make)
    said = sd2rt("run", small_bundle, "a", "--count", "10000000", "--steps", "1", "--seed", "5", "-o", "out")
    assert said.code == 130
    assert sorted(path.stem for path in Path("out").iterdir()) == sorted(str(seed) for seed in range(5, 13))


@pytest.mark.parametrize("threads", ["1025", "100000"])
def test_threads(threads: str, refused: Refused, small_bundle: Path) -> None:
    assert refused(2, "run", small_bundle, "a", "--threads", threads).startswith(
        f"threads is {threads}: give at least 1, up to 1024"
    )
