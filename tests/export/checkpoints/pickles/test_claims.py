import collections
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.pickles.claims import check_claims
from sd2rt.export.checkpoints.pickles.unpickler import CodeError
from sd2rt.export.checkpoints.weight_file import open_pickle

TENSOR_V2 = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"X\7\0\0\0storagectorch\nFloatStorage\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(shape: tuple[int, ...], numel: int = 4, strides: tuple[int, ...] | None = None) -> bytes:
    """Instructions that rebuild a tensor of storage 0."""
    strides = tuple(0 for _ in shape) if strides is None else strides
    sides = b"(" + b"".join(map(whole, shape)) + b"t"
    steps = b"(" + b"".join(map(whole, strides)) + b"t"
    storage = b"(" + STORAGE + text("0") + text("cpu") + whole(numel) + b"tQ"
    return TENSOR_V2 + b"(" + storage + whole(0) + sides + steps + b"\x89ccollections\nOrderedDict\n)RtR"


def archive(path: Path, code: bytes, storage: bytes = bytes(16), compress: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", b"\x80\2" + code + b".")
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", storage)
        file.writestr("archive/version", "3\n")
    return path


def named(code: bytes) -> bytes:
    return b"}" + text("a.weight") + code + b"s"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_pickle(path, allowed=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


CONTENTS: list[Any] = [
    {"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.float16)},
    {"state_dict": {"a": torch.ones(3)}, "epoch": 3, "rate": 0.1, "name": "x", "none": None, "yes": True},
    collections.OrderedDict(a=torch.nn.Parameter(torch.ones(2))),
    torch.nn.Linear(2, 3).state_dict(),
    {
        "a": torch.arange(6).reshape(2, 3).t(),
        "b": torch.arange(4).expand(1, -1),
        "c": torch.ones(2, dtype=torch.bfloat16),
    },
    {
        "a": torch.ones(2),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"lr": (0.9, 0.99)}]},
    },
    {"a": torch.ones(2), "b": torch.tensor(2 + 1j), "size": torch.Size([1, 2]), "dtype": torch.float32},
    {
        "a": torch.ones(2),
        ("a", 1): 2,
        "big": 1 << 60,
        "counter": collections.Counter([1, 1, 2]),
        "device": torch.device("cpu"),
    },
]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_not_refused(content: Any, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    check_claims(path)
    state = torch.load(path, weights_only=True)
    state = state.get("state_dict", state)
    if all(isinstance(key, str) for key in state):
        file = open_pickle(path, allowed=True)
        assert dict(file.shapes) == {
            key: tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")
        }


def test_written_by_hand(tmp_path: Path) -> None:
    file = open_pickle(archive(tmp_path / "a.ckpt", named(tensor((2, 2), strides=(2, 1)))), allowed=True)
    assert dict(file.shapes) == {"a.weight": (2, 2)}


def test_dictionaries_that_contain_themselves(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", b"}q\0" + text("state_dict") + b"h\0s")
    assert "has no tensors" in refusal(path)
    two = b"}q\0" + text("state_dict") + b"}q\1" + text("state_dict") + b"h\0ss"
    assert "has no tensors" in refusal(archive(path, two))


CLAIMS = {
    "storage": named(tensor((2,), numel=1 << 38)),
    "negative": named(tensor((2,), numel=-1)),
    "long sides": named(tensor((1 << 900, 1 << 900))),
    "dimensions": named(tensor((1,) * 2000)),
    "product": named(tensor((1 << 30, 1 << 30))),
    "memo": b"}"
    + text("a")
    + tensor((1 << 18,), 4)
    + b"s("
    + b"".join(text(f"b{i}") + tensor((1 << 18,), 4) for i in range(50))
    + b"u",
    "instructions": b"]" + b"K\1a" * 600_000,
    "copies": b"(" + b"K\1" * 1000 + b"lq\0" + b"ccollections\nCounter\nq\1h\0\x85R" + b"h\1h\0\x85R" * 2000,
    "integer": b"\x8b" + struct.pack("<I", 1 << 20) + b"\1" * (1 << 20),
    "memo index": b"Nr\xff\xff\xff\xff",
    "nested key": b"}" + b"N" + b"\x85" * 500_000 + b"Ns",
    "text length": b"X\xff\xff\xff\xff",
    "frame": b"\x95" + struct.pack("<Q", 1 << 50),
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 50),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_claims_are_refused_before_torch_reads_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> object:
        raise AssertionError("PyTorch reads it")

    monkeypatch.setattr(torch, "load", loaded)
    message = refusal(archive(tmp_path / "a.ckpt", CLAIMS[kind]))
    assert "PyTorch reads it" not in message or kind == "memo index"


CALLS = {
    "torch.FloatTensor": whole(1 << 34),
    "torch.Tensor": whole(1 << 34),
    "torch.storage.UntypedStorage": whole(1 << 34),
    "builtins.bytearray": whole(1 << 34),
    "torch._utils._rebuild_sparse_tensor": b"N",
    "torch._utils._rebuild_meta_tensor_no_storage": b"N",
    "torch._utils._rebuild_qtensor": b"N",
    "os.system": text("true"),
    "builtins.eval": text("1"),
    "collections.OrderedDict": b"N",
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_by_name(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    reference = f"c{module}\n{function}\n".encode()
    for code in (
        reference + b"(" + CALLS[name] + b"tR",
        reference + b"(" + CALLS[name] + b"t\x81",
        b"(" + reference + CALLS[name] + b"o",
    ):
        path = archive(tmp_path / "a.ckpt", named(code))
        with pytest.raises(CodeError):
            check_claims(path)
        assert f"contains more than weights ({name})" in refusal(path)


def test_compressed_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", named(tensor((2, 2))), compress=True)
    assert "compressed, which torch.save never does" in refusal(path)


def test_older_file_that_claims_a_large_storage(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x04N") == 1
    path.write_bytes(content.replace(b"K\x04N", b"J\xff\xff\xff\x7fN"))
    assert "a storage of 8589934588 bytes" in refusal(path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, code: bytes, zipped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    if zipped:
        archive(path, code)
    else:
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + code + b"x")
    refusal(path)
