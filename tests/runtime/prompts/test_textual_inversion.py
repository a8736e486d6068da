"""Embedding files written by PyTorch and safetensors, and malicious or damaged ones."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.errors import RequestError
from sd2rt.engines.weights.safe_pickle import ForbiddenError, PickledTensor, read_pickled
from sd2rt.runtime.prompts.textual_inversion import Embedding, check_embedding, load_embedding

VECTORS = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


def a1111(vectors: torch.Tensor, **other: Any) -> dict[str, Any]:
    """State dict in the layout of AUTOMATIC1111's training."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "toy",
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        **other,
    }


def load(path: Path, token: str | None = None, *, allow_pickle: bool = True) -> Embedding:
    return load_embedding(path, token, allow_pickle=allow_pickle)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 32)])
def test_safetensors(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    path, vectors = tmp_path / "any.safetensors", VECTORS.flatten()[: np.prod(shape)].reshape(shape).to(dtype)
    save_file({"<toy>": vectors}, path, {"format": "pt"})
    actual = load(path, allow_pickle=False)
    assert actual.token == "<toy>"
    np.testing.assert_array_equal(actual.vectors, vectors.float().numpy().reshape(-1, 32))
    assert actual.vectors.dtype == np.float32
    assert actual.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("layout", "token"),
    [
        (lambda vectors: {"<toy>": vectors}, "<toy>"),
        (lambda vectors: {"<toy>": vectors[0]}, "<toy>"),
        (lambda vectors: collections.OrderedDict({"<toy>": torch.nn.Parameter(vectors)}), "<toy>"),
        (a1111, "toy"),
        (lambda vectors: a1111(torch.nn.Parameter(vectors)), "toy"),
        (lambda vectors: a1111(vectors, name=None), "file"),
        # Not contiguous, and only part of a storage.
        (lambda vectors: {"<toy>": vectors.T.contiguous().T[1:]}, "<toy>"),
    ],
    ids=["diffusers", "one vector", "parameter", "a1111", "a1111 parameter", "no name", "strided"],
)
def test_pickles(
    tmp_path: Path, suffix: str, dtype: torch.dtype, layout: Callable[[torch.Tensor], Any], token: str
) -> None:
    path = tmp_path / f"file{suffix}"
    torch.save(layout(VECTORS.to(dtype)), path)
    state = torch.load(path, weights_only=True)
    expected = next(iter(state["string_to_param"].values() if "name" in state else state.values()))
    actual = load(path)
    assert actual.token == token
    np.testing.assert_array_equal(actual.vectors, expected.detach().float().numpy().reshape(-1, 32))
    assert load(path, "other").token == "other"


def test_a_file_without_a_name_gives_its_own(tmp_path: Path) -> None:
    save_file({"emb_params": VECTORS}, tmp_path / "my toy.safetensors")
    assert load(tmp_path / "my toy.safetensors").token == "my toy"


@pytest.mark.parametrize(
    "vectors", [VECTORS, VECTORS.bfloat16(), torch.nn.Parameter(VECTORS), VECTORS.numpy()], ids=str
)
def test_state_dicts(vectors: Any) -> None:
    for state in ({"<toy>": vectors}, a1111(vectors, name="<toy>")):
        actual = load_embedding(state, None, allow_pickle=False)
        assert actual.token == "<toy>"
        assert actual.vectors.shape == (3, 32)
        assert actual.sha256 == hashlib.sha256(actual.vectors.tobytes()).hexdigest()
    with pytest.raises(RequestError, match="does not name its embedding: give its name"):
        load_embedding({"emb_params": vectors}, None, allow_pickle=False)


def test_pickles_only_where_they_are_allowed(tmp_path: Path) -> None:
    torch.save({"<toy>": VECTORS}, tmp_path / "a.pt")
    with pytest.raises(
        RequestError, match=r"a\.pt is a pickle, a format that can carry code: .*--allow-pickle"
    ):
        load(tmp_path / "a.pt", allow_pickle=False)


class Evil:
    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


def zipped(data: bytes, **storages: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("call", "args", "named"),
    [
        (os.system, ("touch evil",), r"posix\.system"),
        (eval, ("open('evil', 'w')",), "__builtin__.eval"),
        (getattr, ({}, "clear"), "__builtin__.getattr"),
        (torch.load, ("evil",), r"torch\.serialization\.load"),
        (np.frombuffer, (b"1234",), r"numpy\.frombuffer"),
    ],
)
def test_code_is_refused_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"<toy>": VECTORS, "more": Evil(call, *args)}, "a.pt")
    with pytest.raises(
        RequestError, match=rf"a\.pt holds more than tensors \({named}\) .* it was not loaded"
    ):
        load(Path("a.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_tensor_is_not_changed_once_made() -> None:
    """The opcode that sets attributes is refused, on tensors and on the functions that rebuild them."""
    buffer = io.BytesIO()
    torch.save({"<toy>": VECTORS}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        data = archive.read(name)
        storage = archive.read(name.replace("data.pkl", "data/0"))
    assert isinstance(read_pickled(zipped(data, **{"0": storage}))["<toy>"], PickledTensor)
    # A BUILD with a dictionary of one attribute, before the end of the outer dictionary.
    change = b"}X\x05\x00\x00\x00arrayK\x01sb"
    with pytest.raises(ForbiddenError, match="the opcode BUILD"):
        read_pickled(zipped(data[:-2] + change + b"s.", **{"0": storage}))
    for function in (b"ccollections\nOrderedDict\n)R", b"ctorch._utils\n_rebuild_tensor_v2\n"):
        with pytest.raises(ForbiddenError, match="the opcode BUILD"):
            read_pickled(zipped(b"\x80\x02" + function + b"}X\x05\x00\x00\x00itemsK\x01sb."))


@pytest.mark.parametrize(
    "code",
    [
        # A memo of a billion entries; deeply nested tuples that are hashed; thousands of numbers.
        b"\x80\x02}r\x00\x00\x00\x40.",
        b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
        b"\x80\x02](" + b"K\x01" * 20_000 + b"e.",
    ],
)
def test_what_would_harm_the_unpickler_itself(code: bytes) -> None:
    with pytest.raises(ForbiddenError, match="more than 10000 instructions"):
        read_pickled(zipped(code))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((9,), (1,), 0),
        ((2, 2), (7, 1), 0),
        ((8,), (1,), 1),
        ((1 << 40,), (0,), 0),
        ((16,), (0,), 0),
        ((-1,), (1,), 0),
        ((2,), (), 0),
    ],
)
def test_tensors_outside_of_their_storage(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    class Writer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 8) if obj == "the storage" else None

    stream = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Writer(stream, protocol=2).dump(Evil(rebuild, "the storage", offset, size, stride, False, {}))
    with pytest.raises(ValueError, match="its tensor"):
        read_pickled(zipped(stream.getvalue(), **{"0": bytes(32)}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip archive"),
        (pickle.dumps({"<toy>": 1}), "not a zip archive"),
        (zipped(b"")[:-30], "not a zip archive"),
        (zipped(b""), "damaged"),
        (zipped(pickle.dumps([])[:-3]), "damaged"),
        (zipped(b"\x80\x02K\x01Q."), "damaged"),
    ],
)
def test_files_that_are_no_pickle_of_tensors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(RequestError, match=rf"a\.pt cannot be read \(.*{message}.*\): get the file again"):
        load(tmp_path / "a.pt")


def test_a_compressed_archive_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 20))
    with pytest.raises(ValueError, match="compressed"):
        read_pickled(stream.getvalue())


def test_an_archive_of_another_version_is_refused() -> None:
    data = bytearray(zipped(b""))
    # In the central directory: the version needed to read the first entry.
    data[data.rindex(b"PK\x01\x02", 0, data.index(b"PK\x05\x06")) + 6] = 100
    with pytest.raises(ValueError, match="not a zip archive"):
        read_pickled(bytes(data))


@settings(max_examples=300)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_arbitrary_bytes_are_no_pickle(first: bytes, second: bytes) -> None:
    with contextlib.suppress(ValueError, ForbiddenError):
        read_pickled(zipped(b"\x80\x02" + first, **{"0": second}))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"clip_g": VECTORS, "clip_l": VECTORS}, "for Stable Diffusion XL"),
        ({"a": VECTORS, "b": VECTORS}, "holds 2 tensors, expected one: it is not a textual inversion"),
        ({}, "holds 0 tensors"),
        ({"string_to_param": 3}, "holds 0 tensors"),
        ({"a": torch.zeros(2, 3, 32)}, r"holds float32\[2, 3, 32\], expected the vectors of a token"),
        ({"a": np.zeros((2, 32), np.int64)}, r"holds int64\[2, 32\]"),
    ],
)
def test_what_is_no_textual_inversion(state: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_embedding(state, "<toy>", allow_pickle=False)


def test_other_containers(tmp_path: Path) -> None:
    torch.save([VECTORS], tmp_path / "a.pt")
    with pytest.raises(RequestError, match="holds a list, expected a dictionary of tensors"):
        load(tmp_path / "a.pt")
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(RequestError, match=r"a\.gif is not an embedding file"):
        load(tmp_path / "a.gif")
    with pytest.raises(RequestError, match=r"none\.pt cannot be read: No such file"):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (
            np.zeros((1, 768)),
            "vectors of width 768, this bundle's have 1024: it was made for Stable Diffusion 1,",
        ),
        (np.zeros((1, 1280)), "made for Stable Diffusion XL"),
        (np.zeros((1, 5)), "made for another model"),
        (np.zeros((76, 1024)), "has 76 vectors, expected 1 to 75"),
        (np.zeros((0, 1024)), "has 0 vectors"),
        (np.full((1, 1024), np.nan), "not finite"),
    ],
)
def test_vectors_that_do_not_fit(vectors: Any, message: str) -> None:
    sizes = SimpleNamespace(embeddings=SimpleNamespace(width=1024), tokenizer=SimpleNamespace(max_length=77))
    with pytest.raises(RequestError, match=f"^embedding '<toy>' .*{message}"):
        check_embedding(Embedding("<toy>", vectors.astype(np.float32), ""), cast(Manifest, sizes))
