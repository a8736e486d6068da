"""What sd2rt run takes beside a prompt's words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ..conftest import Command, Refused

FAST = ("--steps", "2", "--threads", "1", "--seed", "1")
VECTORS = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("quick_opening", "here")


def made(sd2rt: Command, bundle: Path, *words: str) -> tuple[dict[str, Any], np.ndarray]:
    """What a run says of its one image, and the image."""
    said = sd2rt("run", bundle, *words, *FAST, "--json", "-q")
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    with Image.open(facts["path"]) as image:
        assert json.loads(image.info["sd2rt"]).items() <= facts.items()
        return facts, np.asarray(image, np.int16)


def test_syntax_and_clip_skip(sd2rt: Command, small_bundle: Path) -> None:
    facts, plain = made(sd2rt, small_bundle, "a (big:1.9) cat")
    assert not {"prompt_syntax", "clip_skip", "embeddings"} & set(facts)
    facts, weighted = made(sd2rt, small_bundle, "a (big:1.9) cat", "--prompt-syntax", "a1111")
    assert facts["prompt_syntax"] == "a1111"
    assert np.abs(weighted - plain).max() > 1
    facts, skipped = made(sd2rt, small_bundle, "a (big:1.9) cat", "--clip-skip", "2")
    assert facts["clip_skip"] == 2
    assert np.abs(skipped - plain).max() > 1


def test_embeddings(sd2rt: Command, small_bundle: Path) -> None:
    save_file({"<toy>": VECTORS}, "one.safetensors")
    torch.save({"string_to_param": {"*": VECTORS[:1]}, "name": "two"}, "two.pt")
    _, without = made(sd2rt, small_bundle, "a <toy> zork")
    words = ("--embedding", "one.safetensors", "--embedding", "zork=two.pt", "--allow-pickle")
    facts, image = made(sd2rt, small_bundle, "a <toy> zork", *words)
    digests = [
        hashlib.sha256(Path(name).read_bytes()).hexdigest()[:12] for name in ("one.safetensors", "two.pt")
    ]
    assert facts["embeddings"] == {"<toy>": digests[0], "zork": digests[1]}
    assert np.abs(image - without).max() > 1
    # A file whose name has an equals sign is one still.
    Path("one.safetensors").rename("a=b.safetensors")
    facts, _ = made(sd2rt, small_bundle, "a <toy>", "--embedding", "a=b.safetensors")
    assert facts["embeddings"] == {"<toy>": digests[0]}


def test_what_is_refused(refused: Refused, small_bundle: Path) -> None:
    torch.save({"toy": VECTORS}, "toy.pt")
    save_file({"<toy>": torch.zeros(768)}, "old.safetensors")
    for words, said in (
        (("--prompt-syntax", "b"), "prompt_syntax is 'b': input should be 'plain' or 'a1111'"),
        (("--clip-skip", "-1"), "clip_skip is -1: input should be greater than or equal to 0"),
        (("--clip-skip", "3"), "clip_skip is 3, but small's text encoder has only 3 layers: use at most 2"),
        (("--embedding", "none.pt"), "none.pt cannot be read: No such file or directory"),
        (
            ("--embedding", "toy.pt"),
            "toy.pt is a pickle, a format that can carry code: use a .safetensors of the same embedding, or allow "
            "pickles (--allow-pickle), of which only tensors are read",
        ),
        (
            ("--embedding", "old.safetensors"),
            "embedding '<toy>' has vectors of width 768, this bundle's have 32: it was made for Stable Diffusion 1, "
            "find one for Stable Diffusion 2",
        ),
        (
            ("--embedding", "cat=toy.pt", "--allow-pickle"),
            "'cat' is a token of the vocabulary: give the embedding another name",
        ),
    ):
        assert refused(2, "run", small_bundle, "a", *FAST, *words) == said


def test_an_embedding_is_read_before_the_bundle(refused: Refused) -> None:
    assert "none.pt cannot be read" in refused(2, "run", "./nowhere", "a", "--embedding", "none.pt")


def test_what_has_no_effect_is_noted(sd2rt: Command, small_bundle: Path) -> None:
    save_file({"<toy>": VECTORS}, "style.safetensors")
    embedding = ("--embedding", "style.safetensors")
    note = "note: the embedding <toy> had no effect: no prompt contains its name, "
    assert f"{note}<toy>" in sd2rt("run", small_bundle, "a fox", *embedding, *FAST).err
    assert (
        f"{note}style"
        in sd2rt("run", small_bundle, "a <toy>", *embedding, *FAST, "--prompt-syntax", "a1111").err
    )
    assert note not in sd2rt("run", small_bundle, "a fox", "--negative", "<toy>", *embedding, *FAST).err
    unguided = sd2rt("run", small_bundle, "a fox", "--negative", "blurry", "--guidance", "1", *FAST).err
    assert "the negative prompt has no effect without guidance" in unguided


@pytest.mark.parametrize(
    ("idle", "needed", "said"),
    [
        (
            ("--guidance-interval", "0.2:30"),
            ("--guidance", "1"),
            "the guidance interval has no effect without guidance",
        ),
        (("--rescale", "0.5"), ("--guidance", "1"), "the guidance rescale has no effect without guidance"),
        (("--variation", "7:0"), (), "the variation seed has no effect at a variation strength of 0"),
        (("--paste-blur", "9"), (), "the paste blur has no effect without paste"),
    ],
)
def test_options_without_effect_are_noted(
    sd2rt: Command, small_bundle: Path, idle: tuple[str, ...], needed: tuple[str, ...], said: str
) -> None:
    assert said in sd2rt("run", small_bundle, "a fox", *idle, *needed, *FAST).err
    assert "no effect" not in sd2rt("run", small_bundle, "a fox", *needed, *FAST).err
