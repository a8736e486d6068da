"""Checkpoints with other libraries' objects: their weights are read, and nothing in them is ever run."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import fractions
import functools
import operator
import os
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.weight_file import open_pickle


class Touching:
    """An object whose class touches a file however a pickle brings it back."""

    def __init__(self) -> None:
        self.value = 3

    def __setstate__(self, state: Any) -> None:
        Path("ran").touch()

    def append(self, item: Any) -> None:
        Path("ran").touch()


class TouchingDict(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        Path("ran").touch()
        super().__setitem__(key, value)


class Listed(list[Any]):
    pass


class Mode(enum.Enum):
    MIN = "min"


class Keywords:
    """An object that pickles with the opcode NEWOBJ_EX."""

    def __new__(cls, *, value: int = 0) -> Keywords:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"value": 4}


def foreign(kind: str) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "instance": lambda: Touching(),
        "by class": lambda: {Touching: {"best": torch.tensor(1.0)}, Mode.MIN: 2},
        "dictionary": lambda: TouchingDict(a=1, b=torch.ones(2)),
        "list": lambda: Listed([1, torch.ones(2)]),
        "enumeration": lambda: [Mode.MIN, (Mode.MIN, 3)],
        "keywords": lambda: Keywords(),
        "namespace": lambda: argparse.Namespace(rate=0.1, nested=argparse.Namespace(path=Path("/tmp"))),
        "numpy": lambda: [
            np.float64(0.5),
            np.int64(3),
            np.arange(5),
            np.dtype("f4"),
            np.random.default_rng(1),
        ],
        "library": lambda: [
            collections.defaultdict(list, {"a": [1]}),
            datetime.datetime(2023, 1, 2, tzinfo=datetime.UTC),
            fractions.Fraction(1, 3),
            functools.partial(max, 1),
            collections.deque([1, 2]),
            {1, 2},
            frozenset({3}),
            range(4),
            types.SimpleNamespace(a=1),
        ],
        "module": lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)),
        "optimizer": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 0.1), 3),
    }
    return makers[kind]()


KINDS = (
    *("instance", "by class", "dictionary", "list", "enumeration", "keywords"),
    *("namespace", "numpy", "library", "module", "optimizer"),
)


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of several types, strided, shared and empty."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(6, 5, generator=generator)
    return {
        "whole": whole,
        "part": whole[1:4, ::2],
        "turned": whole.T,
        "half": torch.randn(3, generator=generator).half(),
        "bfloat16": torch.randn(2, 3, generator=generator).bfloat16(),
        "double": torch.randn(3, generator=generator).double(),
        "long": torch.arange(5),
        "truth": torch.tensor([True, False]),
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, generator=generator)),
    }


def check(path: Path, expected: dict[str, torch.Tensor]) -> None:
    file = open_pickle(path, allowed=True)
    assert dict(file.shapes) == {name: tuple(value.shape) for name, value in expected.items()}
    for name, value in file.tensors(expected).items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_beside_other_objects(
    kind: str,
    zipped: bool,
    protocol: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = weights(len(kind))
    content = {
        "before": foreign(kind),
        "state_dict": expected,
        "callbacks": {"ModelCheckpoint": {"state": foreign(kind)}},
        "hyper_parameters": foreign(kind),
    }
    torch.save(content, "a.ckpt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    Path("ran").unlink(missing_ok=True)
    check(Path("a.ckpt"), expected)
    assert not Path("ran").exists()


def test_only_the_state_dict_counts(tmp_path: Path) -> None:
    expected = weights(1)
    content = {
        "ema": {"other": torch.ones(4)},
        "state_dict": {**expected, "epoch": 3, "callback": Touching()},
    }
    torch.save(content, tmp_path / "a.ckpt")
    check(tmp_path / "a.ckpt", expected)
    torch.save(Touching(), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"holds .*, expected named tensors"):
        open_pickle(tmp_path / "a.ckpt", allowed=True)
    torch.save({"state_dict": Touching(), "a": 1}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="has no tensors"):
        open_pickle(tmp_path / "a.ckpt", allowed=True)


class Code:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


class Chain:
    """``operator.attrgetter("system")(os)("touch ran")``, as steps of a pickle."""

    def __reduce__(self) -> Any:
        return Code(getattr, os, "system"), ("touch ran",)


HOSTILE: dict[str, Any] = {
    "system": lambda: Code(os.system, "touch ran"),
    "eval": lambda: Code(eval, "open('ran', 'w')"),
    "exec": lambda: Code(exec, "open('ran', 'w')"),
    "import": lambda: Code(__import__, "antigravity"),
    "getattr": lambda: Code(getattr, Touching(), "append"),
    "attrgetter": lambda: Code(operator.attrgetter, "system"),
    "methodcaller": lambda: Code(operator.methodcaller, "touch"),
    "partial": lambda: Code(functools.reduce, operator.add, ["a"]),
    "setstate": lambda: Touching(),
    "open": lambda: Code(open, "ran", "w"),
    "loads": lambda: Code(pickle.loads, pickle.dumps(Code(os.system, "touch ran"))),
    "torch.load": lambda: Code(torch.load, "a.ckpt", None),
    "path": lambda: Code(Path.touch, Path("ran")),
    "type": lambda: Code(type, "X", (), {}),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_code_is_never_run(
    name: str, zipped: bool, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = {"a": torch.ones(3), "b": torch.arange(4)}
    content = {"callbacks": [HOSTILE[name]()], "state_dict": expected}
    torch.save(content, "a.ckpt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    Path("ran").unlink(missing_ok=True)
    refusal = ""
    try:
        check(Path("a.ckpt"), expected)
    except CheckpointError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert not Path("ran").exists()


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"


@pytest.mark.parametrize(
    "code",
    [
        stack_global("os", "system") + b"\x8c\x09touch ran\x85R",
        stack_global("os", "path.os.system") + b"\x8c\x09touch ran\x85R",
        stack_global("argparse", "_os.system") + b"\x8c\x09touch ran\x85R",
        stack_global("pathlib", "os.system") + b"\x8c\x09touch ran\x85R",
        b"(X\x09\0\0\0touch ranios\nsystem\n",
        b"(cposix\nsystem\nX\x09\0\0\0touch rano",
        stack_global("builtins", "getattr") + stack_global("os", "system") + b"\x8c\x08__call__\x86R",
        # A stand-in that is called, given attributes and items.
        stack_global("a.b", "C") + b")R\x8c\x09touch ran\x85R",
        stack_global("a.b", "C") + b")\x81}\x8c\x0c__setstate__" + stack_global("os", "system") + b"sb",
        stack_global("a.b", "C") + b")\x81\x8c\x09touch ranb",
        b"\x82\x01",
        b"\x8a\x01\x05Q",
    ],
)
def test_tricks_of_instructions(code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from .test_claims import archive, named, tensor

    monkeypatch.chdir(tmp_path)
    # A dictionary of a weight and of the trick.
    whole = named(tensor((2, 2), strides=(2, 1))) + b"X\5\0\0\0trick" + code + b"s"
    path = archive(tmp_path / "a.ckpt", whole)
    refusal = ""
    try:
        assert dict(open_pickle(path, allowed=True).shapes) == {"a.weight": (2, 2)}
    except CheckpointError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert not Path("ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 1500), data=st.binary(max_size=6), cut=st.booleans())
def test_damage_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, zipped: bool, position: int, data: bytes, cut: bool
) -> None:
    """Whatever bytes change, a file is read or refused."""
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    content = {"state_dict": {"a": torch.ones(5)}, "callbacks": argparse.Namespace(a=1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[:position] + data + (b"" if cut else whole[position + len(data) :]))
    refusal = ""
    try:
        file = open_pickle(path, allowed=True)
        file.tensors(file.shapes)
    except CheckpointError as error:
        refusal = str(error)
    assert "\n" not in refusal
