from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.prompts.encoder import TextEncoder
from sd2rt.runtime.prompts.schedule import schedule_texts
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.prompts.textual_inversion import Embedding


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_bundle, tmp_path / "copy")
    return tmp_path / "copy"


def replace(bundle: Path, key: str, content: bytes) -> Path:
    """Replace a file, and its size and digest in the manifest."""
    data = json.loads((bundle / "bundle.json").read_text())
    path = bundle / str(data[key]["file"]["path"])
    path.write_bytes(content)
    data[key]["file"] = describe(bundle, path.name).model_dump()
    del data["checksum"]
    (bundle / "bundle.json").write_text(json.dumps(data))
    return path


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is not a NumPy array"),
        (lambda: b"garbage" * 100, "is not a NumPy array"),
        (lambda: npy(np.zeros((49408, 32), np.float32))[:-8], "is not a NumPy array"),
        (lambda: npy(np.array([print], object)), "is not a NumPy array"),
        (
            lambda: npy(np.zeros((10, 32), np.float32)),
            r"holds float32\[10, 32\], but the manifest says float32\[49408, 32\]",
        ),
        (lambda: npy(np.zeros((49408, 32), np.float16)), r"holds float16\[49408, 32\]"),
        (lambda: npy(np.zeros((49408, 2, 16), np.float32)), r"holds float32\[49408, 2, 16\]"),
    ],
    ids=["empty", "garbage", "cut", "pickle", "few tokens", "half", "three axes"],
)
def test_table_that_is_not_what_the_manifest_says(
    copy: Path, content: Callable[[], bytes], message: str
) -> None:
    path = replace(copy, "embeddings", content())
    with pytest.raises(BundleError, match=f"^{path} {message}.*: build the bundle again$"):
        Pipeline.open(copy, threads=1)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_tokenizer_that_is_none(copy: Path, content: bytes) -> None:
    path = replace(copy, "tokenizer", content)
    with pytest.raises(BundleError, match=f"^{path} is not a tokenizer .*: build the bundle again$"):
        Pipeline.open(copy, threads=1)


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def encoder(pipe: Pipeline) -> Iterator[TextEncoder]:
    """The text encoder, without embeddings before and after the test."""
    text = pipe._networks.text
    yield text
    for embedding in text.embeddings:
        text.remove_embedding(embedding.token)


def encode(encoder: TextEncoder, prompt: str, syntax: Any, **options: Any) -> TextConditioning:
    arguments = {"guided": False, "clip_skip": 0, "calls": 1, "nominal_calls": 1, **options}
    [texts] = schedule_texts(encoder, prompt, "", syntax=syntax, **arguments)
    return texts


# No special characters, no ! (id 0 in one syntax, a letter in the other), and nothing that OpenCLIP cleans.
_LETTERS = st.characters(
    min_codepoint=32, max_codepoint=126, exclude_characters="()[]\\:|!&", include_characters="\n\t"
)


@settings(deadline=None, max_examples=60)
@given(text=st.text(_LETTERS, max_size=40))
@example(text="word " * 75)
@example(text="a, b, c")
def test_text_without_marks_is_one_in_both_syntaxes(pipe: Pipeline, text: str) -> None:
    """Bit for bit: weights of 1 and the restored mean change nothing."""
    assume(not {"AND", "BREAK"} & set(re.findall(r"\w+", text)))
    encoder = pipe._networks.text
    assume(not encoder._tokenizer(text).cut)
    plain, weighted = encode(encoder, text, "plain"), encode(encoder, text, "a1111")
    np.testing.assert_array_equal(weighted.conds[0], plain.conds[0])
    assert weighted.shares == plain.shares


def test_weights_are_multiplied_onto_the_hidden_states(encoder: TextEncoder) -> None:
    plain, weighted = encoder("a big cat"), encode(encoder, "a (big:1.4) cat", "a1111").conds[0]
    factors = np.ones((77, 1), np.float32)
    factors[2] = np.float32(1.4)
    scaled = plain * factors
    np.testing.assert_allclose(weighted, scaled * (plain.mean() / scaled.mean()), rtol=2e-4)
    assert np.abs(weighted - plain).max() > 1e-3


def test_long_prompts_are_chunks(encoder: TextEncoder) -> None:
    long = encode(encoder, "cat " * 75 + "dog", "a1111").conds[0]
    np.testing.assert_array_equal(long, np.concatenate([encoder("cat " * 75), encoder("dog")]))
    with pytest.warns(UserWarning, match="'dog'$"):
        assert encoder("cat " * 75 + "dog").shape == (77, 32)


def test_what_is_known_is_not_encoded_again(encoder: TextEncoder) -> None:
    first = encoder("a cat")
    assert encoder("a cat") is first
    assert encoder.weighted(["a cat"])[0] is first
    assert encoder("a cat", 1) is not first
    for number in range(64):
        encoder(f"cat {number}")
    assert encoder("a cat") is not first


def test_an_embedding_takes_the_place_of_its_name(encoder: TextEncoder) -> None:
    """An embedding made of the table's rows for some words has the same effect as those words."""
    ids = encoder._tokenizer("big cat").ids[1:3]
    rows = np.asarray(encoder._table[ids], np.float32)
    before = encoder("a <toy> here")
    encoder.add_embedding(Embedding("<toy>", rows, ""))
    expected = encoder("a big cat here")
    np.testing.assert_array_equal(encoder("a <toy> here"), expected)
    # As in diffusers and transformers: in any case, without spaces around it.
    np.testing.assert_array_equal(encoder("A<TOY>here"), expected)
    np.testing.assert_array_equal(encode(encoder, "a <Toy> here", "a1111").conds[0], expected)
    encoder.remove_embedding("<toy>")
    np.testing.assert_array_equal(encoder("a <toy> here"), before)
    # Another embedding of that name does not get the cached states of the first.
    encoder.add_embedding(Embedding("<toy>", rows[::-1], ""))
    np.testing.assert_array_equal(encoder("a <toy> here"), encoder("a cat big here"))


def test_the_end_of_a_prompt_is_cut_inside_of_an_embedding(encoder: TextEncoder) -> None:
    rows = np.asarray(encoder._table[[320, 1929]], np.float32)  # "a", "dog"
    encoder.add_embedding(Embedding("<toy>", rows, ""))
    with pytest.warns(UserWarning, match="'<toy> and more'$"):
        cut = encoder("cat " * 74 + "<toy> and more")
    np.testing.assert_array_equal(cut, encoder("cat " * 74 + "a"))


@pytest.mark.parametrize(("token", "file_name"), [("cat", "cat"), ("dog", "cat"), ("cat", "my toy")])
def test_files_named_like_words(encoder: TextEncoder, token: str, file_name: str) -> None:
    """AUTOMATIC1111 replaces a word by the embedding whose file is named like it; plain prompts cannot."""
    row = np.asarray(encoder._table[[320]], np.float32)  # "a"
    text = f"one {file_name} here"
    expected = encoder.weighted([text.replace(file_name, "a")])[0]
    before = encoder.weighted([text])[0]
    encoder.add_embedding(Embedding(token, row, "", file_name))
    np.testing.assert_array_equal(encoder.weighted([text])[0], expected)
    assert np.abs(expected - before).max() > 1e-3
    with pytest.raises(
        RequestError, match=f"the prompt contains '{token}', a token of the vocabulary and an"
    ):
        encoder(f"two {token}, three")
    encoder("two birds!")
    encoder.remove_embedding(token)
    encoder(f"two {token}, three")
    np.testing.assert_array_equal(encoder.weighted([text])[0], before)


@pytest.mark.parametrize(
    ("token", "width", "message"),
    [
        ("cat", 32, "'cat' is a token of the vocabulary: give the embedding another name"),
        ("Cat", 32, "'Cat' is a token of the vocabulary"),
        ("<|endoftext|>", 32, "is a token of the vocabulary"),
        ("", 32, "'' is a token of the vocabulary"),
        (
            "<TOY>",
            32,
            "an embedding named '<toy>' is already loaded: give '<TOY>' another name, or unload that one",
        ),
        ("<new>", 768, "vectors of width 768, this bundle's have 32: it was made for Stable Diffusion 1"),
    ],
)
def test_embeddings_that_are_refused(encoder: TextEncoder, token: str, width: int, message: str) -> None:
    encoder.add_embedding(Embedding("<toy>", np.zeros((1, 32), np.float32), ""))
    with pytest.raises(RequestError, match=message):
        encoder.add_embedding(Embedding(token, np.zeros((1, width), np.float32), ""))
    assert [embedding.token for embedding in encoder.embeddings] == ["<toy>"]
    with pytest.raises(RequestError, match="no embedding is named '<other>'; loaded: <toy>"):
        encoder.remove_embedding("<other>")


def test_a_pipeline_loads_and_forgets_embeddings(pipe: Pipeline) -> None:
    vectors = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)

    def picture() -> Any:
        return pipe("a <toy>", seed=1, num_inference_steps=1, output_type="np").images

    before = picture()
    assert pipe.load_embedding({"<toy>": vectors}).token == "<toy>"
    assert [embedding.token for embedding in pipe.embeddings] == ["<toy>"]
    assert np.abs(picture() - before).max() > 1e-3
    pipe.unload_embedding("<toy>")
    assert pipe.embeddings == ()
    np.testing.assert_array_equal(picture(), before)


def test_clip_skip_has_an_end(pipe: Pipeline) -> None:
    """Two of three layers can be skipped."""
    for skip in (None, 0, 2):
        pipe("a cat", seed=1, num_inference_steps=1, clip_skip=skip)
    with pytest.raises(RequestError, match=r"^clip_skip is 3, .* has only 3 layers: use at most 2$"):
        pipe("a cat", num_inference_steps=1, clip_skip=3)
    with pytest.raises(RequestError, match=r"^clip_skip is -1: "):
        pipe("a cat", num_inference_steps=1, clip_skip=-1)
    with pytest.raises(RequestError, match=r"^prompt_syntax is 'comfy': input should be 'plain' or 'a1111'"):
        pipe("a cat", prompt_syntax=cast(Any, "comfy"))


def test_names_of_files(encoder: TextEncoder) -> None:
    """As in diffusers, plain prompts use the stored name; as in AUTOMATIC1111, a1111 prompts use the file's."""
    ids = encoder._tokenizer("big cat").ids[1:3]
    rows = np.asarray(encoder._table[ids], np.float32)
    encoder.add_embedding(Embedding("<toy>", rows, "", "my-style_v2"))
    encoder.add_embedding(Embedding("<other>", rows, "", "unnamed file"))
    assert len(encoder.unused_embeddings) == 2
    expected = encoder("a big cat here")
    np.testing.assert_array_equal(encode(encoder, "a My-Style_v2 here", "a1111").conds[0], expected)
    assert [embedding.token for embedding in encoder.unused_embeddings] == ["<other>"]
    np.testing.assert_array_equal(encoder("a <toy> here"), expected)
    # The other name is text in the other syntax.
    for text, syntax in (("a <toy> here", "a1111"), ("a my-style_v2 here", "plain")):
        assert not np.array_equal(encode(encoder, text, syntax).conds[0], expected)
    encode(encoder, "an unnamed file", "a1111")
    assert not encoder.unused_embeddings
