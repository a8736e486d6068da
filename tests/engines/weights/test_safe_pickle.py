import contextlib
import operator
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd2rt.engines.errors import RequestError
from sd2rt.engines.weights.safe_pickle import ForbiddenError, read_pickled
from sd2rt.runtime.prompts.textual_inversion import load_embedding

MEBI = 1 << 20


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key: str, numel: int) -> bytes:
    return (
        b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text(key)
        + text("cpu")
        + pickle.dumps(numel, 2)[2:-1]
        + b"tQ"
    )


def tensor(key: str, shape: bytes, strides: bytes, numel: int) -> bytes:
    """Instructions that rebuild a tensor, and put its arguments into the memo as 0."""
    arguments = b"(" + storage(key, numel) + b"K\0" + shape + strides + b"\x89Ntq\0"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def archive(path: Path, code: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\2" + code + b".")
        for key, content in storages.items():
            file.writestr(f"archive/data/{key}", content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as error:
        load_embedding(path, None, allow_pickle=True)
    assert "\n" not in str(error.value)
    return str(error.value)


def one(value: int) -> bytes:
    return b"(" + pickle.dumps(value, 2)[2:-1] + b"t"


def test_written_by_hand(tmp_path: Path) -> None:
    code = b"}" + text("<toy>") + tensor("0", one(4), one(1), 4) + b"s"
    embedding = load_embedding(archive(tmp_path / "a.pt", code, {"0": bytes(16)}), None, allow_pickle=True)
    assert embedding.vectors.shape == (1, 4)


def test_tensor_rebuilt_many_times(tmp_path: Path) -> None:
    """A tensor of 1 MB, whose arguments the memo repeats 2400 times."""
    again = b"ctorch._utils\n_rebuild_tensor_v2\nh\0R0" * 2400
    code = tensor("0", one(MEBI // 4), one(1), MEBI // 4) + again
    path = archive(tmp_path / "a.pt", code, {"0": bytes(MEBI)})
    assert "its tensors have more than 67108864 bytes" in refusal(path)


def test_storages_that_overlap(tmp_path: Path) -> None:
    """Entries of an archive that name the same bytes."""
    count = 80
    keys = [f"{index:03}" for index in range(count)]
    code = b"".join(storage(key, MEBI // 4) + b"0" for key in keys) + b"N"
    path = archive(tmp_path / "a.pt", code, dict.fromkeys(keys[1:], b"") | {keys[0]: bytes(MEBI)})
    with zipfile.ZipFile(path) as file:
        first = file.getinfo(f"archive/data/{keys[0]}")
    content = path.read_bytes()
    start = content.index(b"PK\1\2")
    directory = bytearray(content[start:])
    place = 0
    while directory[place : place + 4] == b"PK\1\2":
        length = struct.unpack_from("<H", directory, place + 28)[0]
        if directory[place + 46 : place + 46 + length].startswith(b"archive/data/"):
            struct.pack_into("<III", directory, place + 16, first.CRC, MEBI, MEBI)
            struct.pack_into("<I", directory, place + 42, first.header_offset)
            directory[place + 46 : place + 46 + length] = f"archive/data/{keys[0]}".encode()
        place += 46 + length
    path.write_bytes(content[:start] + directory)
    # Later releases of Python refuse the archive by themselves.
    refusal(path)


@pytest.mark.parametrize("digits", [9, 100, 20_000, 2_000_000])
def test_long_integers_as_a_shape(digits: int, tmp_path: Path) -> None:
    number = b"\x8b" + struct.pack("<I", digits) + b"\1" * digits
    shape = b"(" + number * 8 + b"t"
    path = archive(tmp_path / "a.pt", tensor("0", shape, shape, 4), {"0": bytes(16)})
    assert "an integer of" in refusal(path)


@pytest.mark.parametrize(
    "number", [b"L" + b"9" * 4000 + b"L\n", b"I" + b"9" * 4000 + b"\n", b"\x8a\xff" + b"\1" * 255]
)
def test_other_spellings_of_long_integers(number: bytes, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", number, {})
    assert "an integer of" in refusal(path)


def test_many_dimensions(tmp_path: Path) -> None:
    shape = b"(" + b"K\1" * 2000 + b"t"
    assert "invalid shape" in refusal(
        archive(tmp_path / "a.pt", tensor("0", shape, shape, 4), {"0": bytes(16)})
    )


@pytest.mark.parametrize("function", [b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"])
def test_copies_of_a_container(function: bytes, tmp_path: Path) -> None:
    """A memo repeats a list in two bytes, which the call would copy each time."""
    code = b"(" + b"K\1K\2\x86" * 500 + b"lq\0" + (function + b"h\0\x85R0") * 1000 + b"N"
    assert "cannot be read" in refusal(archive(tmp_path / "a.pt", code, {}))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, code: bytes) -> None:
    refusal(archive(tmp_path_factory.getbasetemp() / "any.pt", code, {"0": bytes(16)}))


LAYOUTS: list[tuple[str, Any]] = [
    ("dictionary", lambda vectors: {"<toy>": vectors}),
    (
        "a1111",
        lambda vectors: {"string_to_param": {"*": vectors}, "string_to_token": {"*": 265}, "name": "<toy>"},
    ),
    (
        "parameter dictionary",
        lambda vectors: {
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)}),
            "string_to_token": {"*": torch.tensor(265)},
            "name": "<toy>",
        },
    ),
    ("state dictionary", lambda vectors: torch.nn.ParameterDict({"<toy>": vectors}).state_dict()),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_all_years(tmp_path: Path, dtype: torch.dtype, name: str, layout: Any, zipped: bool) -> None:
    """Files of torch.save before and since 1.6, with dictionaries, modules' parameters, and other tensors."""
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(len(name))).to(dtype)
    path = tmp_path / "a.pt"
    torch.save(layout(vectors), path, _use_new_zipfile_serialization=zipped)
    actual = load_embedding(path, None, allow_pickle=True)
    assert actual.token == "<toy>"
    np.testing.assert_array_equal(actual.vectors, vectors.float().numpy())


def test_several_storages_of_an_older_file(tmp_path: Path) -> None:
    """Shared, strided and empty tensors of several types: the same as torch.load."""
    whole = torch.arange(24.0).reshape(4, 6)
    content = {
        "whole": whole,
        "part": whole[1:3, ::2],
        "turned": whole.T,
        "half": torch.randn(5, 3).half(),
        "long": torch.arange(7),
        "none": torch.zeros(0, 4),
        "number": torch.tensor(2.5),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    actual = read_pickled((tmp_path / "a.pt").read_bytes())
    assert list(actual) == list(content)
    for name, tensor in content.items():
        np.testing.assert_array_equal(actual[name].array, tensor.numpy(), err_msg=name)


class Code:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("code", "name"),
    [
        (Code(os.system, "touch ran"), "system"),
        (Code(eval, "open('ran', 'w')"), "eval"),
        (Code(getattr, torch.nn.ParameterDict(), "__class__"), "getattr"),
        (Code(torch.nn.Linear, 2, 2), "Linear"),
        (torch.nn.Linear(2, 2), "Linear"),
        (Code(operator.methodcaller, "clear"), "methodcaller"),
    ],
)
def test_code_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, code: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"<toy>": torch.ones(2, 16), "more": code}, "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ForbiddenError, match=name):
        read_pickled(Path("a.pt").read_bytes())
    assert not Path("ran").exists()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 600))
def test_damaged_older_files(tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int) -> None:
    path = tmp_path_factory.getbasetemp() / "older.pt"
    torch.save({"<toy>": torch.ones(2, 16)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    with contextlib.suppress(ValueError, ForbiddenError):
        read_pickled(whole[:position] + data + whole[position + len(data) :])
    with contextlib.suppress(ValueError, ForbiddenError):
        read_pickled(whole[:position] + data)


def test_dictionary_that_contains_itself(tmp_path: Path) -> None:
    code = b"}q\0" + text("string_to_param") + b"h\0s"
    path = archive(tmp_path / "a.pt", code, {})
    state = read_pickled(path.read_bytes())
    assert state["string_to_param"] is state
    assert "holds 0 tensors" in refusal(path)
