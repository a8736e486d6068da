"""Pickles that contain code, or that claim sizes: bare, in archives of ``torch.save``, and in its older format."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.hostile_files.case import Case, Cases, ReaderName, written

MARKER = "code-ran"
"""File that the code of a pickle creates in the folder of its file."""

_MAGIC = 0x1950A86A20F9469CFC6C
_FILES: tuple[tuple[ReaderName, str], ...] = (
    ("checkpoint", "a.ckpt"),
    ("checkpoint", "a.pth"),
    ("embedding", "a.pt"),
    ("embedding", "a.bin"),
)

# Each creates the marker when it is called with its path. ``{}`` is the marker's path.
_CODE: dict[str, tuple[str, str, str]] = {
    "os.system": ("os", "system", "touch '{}'"),
    "posix.system": ("posix", "system", "touch '{}'"),
    "nt.system": ("nt", "system", "touch '{}'"),
    "subprocess": ("subprocess", "getoutput", "touch '{}'"),
    "popen": ("os", "popen", "touch '{}'"),
    "eval": ("builtins", "eval", "open('{}', 'w')"),
    "exec": ("builtins", "exec", "open('{}', 'w')"),
    "python 2": ("__builtin__", "eval", "open('{}', 'w')"),
    "timeit": ("timeit", "timeit", "open('{}', 'w')"),
    "cprofile": ("cProfile", "run", "open('{}', 'w')"),
    "pdb": ("pdb", "run", "open('{}', 'w')"),
    "runpy": ("runpy", "run_path", "{}"),
    "numpy": ("numpy.testing._private.utils", "runstring", "open('{}', 'w')"),
    "torch": ("torch.serialization", "load", "{}"),
    "hub": ("torch.hub", "load", "{}"),
    "path": ("pathlib", "Path.touch", "{}"),
    "import": ("importlib", "import_module", "antigravity"),
    "webbrowser": ("webbrowser", "open", "file://{}"),
}


def text(value: str) -> bytes:
    """Instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    """Instruction that pushes an integer of at most 255 bytes."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(shape: tuple[int, ...], numel: int = 4, key: str = "0") -> bytes:
    """Instructions that rebuild a tensor."""
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + whole(numel) + b"tQ"
    )
    sides = b"(" + b"".join(map(whole, shape)) + b"t"
    strides = b"(" + whole(0) * len(shape) + b"t"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuilt + b"(" + storage + whole(0) + sides + strides + b"\x89ccollections\nOrderedDict\n)RtR"


def archive(code: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Content of a file of ``torch.save``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as entries:
        entries.writestr("archive/data.pkl", code)
        entries.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            entries.writestr(f"archive/data/{key}", content)
        entries.writestr("archive/version", "3\n")
    return file.getvalue()


def _older(code: bytes) -> bytes:
    """Content of a file of ``torch.save`` before PyTorch 1.6."""
    head = [pickle.dumps(value, 2) for value in (_MAGIC, 1001, {"little_endian": True})]
    return b"".join(head) + code + pickle.dumps([], 2)


_FORMS: dict[str, Callable[[bytes], bytes]] = {
    "bare": lambda code: code,
    "archive": lambda code: archive(code, {"0": bytes(16)}),
    "older": _older,
}


def with_code() -> Cases:
    """Pickles that call a function: every function in every form, protocol or opcode, and reader."""
    for name, (module, function, argument) in _CODE.items():
        for opcode in ("REDUCE", "INST", "OBJ", "NEWOBJ", "STACK_GLOBAL", "BUILD"):
            for form, wrap in _FORMS.items():
                for reader, file in _FILES[:: 2 if form == "archive" else 3]:
                    yield Case(
                        "pickles with code",
                        f"{name} by {opcode}, {form}, as {file}",
                        reader,
                        _calling(file, wrap, opcode, module, function, argument),
                    )


def _calling(
    file: str, wrap: Callable[[bytes], bytes], opcode: str, module: str, function: str, argument: str
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / file).write_bytes(wrap(_call(opcode, module, function, argument.format(folder / MARKER))))
        return folder / file

    return make


def _call(opcode: str, module: str, function: str, argument: str) -> bytes:
    named = f"{module}\n{function}\n".encode()
    pushed = text(argument)
    calls = {
        "REDUCE": b"\x80\2c" + named + pushed + b"\x85R",
        "INST": b"(" + pushed + b"i" + named,
        "OBJ": b"\x80\2(c" + named + pushed + b"o",
        "NEWOBJ": b"\x80\2c" + named + pushed + b"\x85\x81",
        "STACK_GLOBAL": b"\x80\4" + text(module) + text(function) + b"\x93" + pushed + b"\x85R",
        # The state's __setstate__ is the function.
        "BUILD": b"\x80\2ccollections\nOrderedDict\n)R}"
        + text("__setstate__")
        + b"c"
        + named
        + b"sb"
        + pushed
        + b"b",
    }
    # Inside a state dict, beside a tensor that is in order.
    code = b"}(" + text("a.weight") + tensor((4,)) + text("b") + calls[opcode] + b"u."
    pickletools.dis(code, io.StringIO())
    return code


def with_claims() -> Cases:
    """Pickles that claim large or many things, or contain themselves."""
    mebi = 1 << 20
    weight = tensor((mebi // 4,), mebi // 4)
    long_sides = b"(" + (b"\x8b" + struct.pack("<I", 2 * mebi) + b"\1" * 2 * mebi) * 8 + b"t"
    sides = {
        "a storage of 2^62 numbers": tensor((4,), 1 << 62),
        "a storage of 2^38 numbers": tensor((4,), 1 << 38),
        "a negative storage": tensor((4,), -1),
        "a tensor of 2^60 numbers": tensor((1 << 30, 1 << 30)),
        "a tensor of 2^37 numbers of one": tensor((1 << 37,)),
        "integers of 255 bytes": tensor((1 << 2000,) * 8),
        "2000 dimensions": tensor((1,) * 2000),
        "100000 dimensions": tensor((1,) * 100_000),
        "no dimension and a wrong offset": tensor((), 0),
        "another key": tensor((4,), key="../../0"),
    }
    codes = {name: b"}" + text("a.weight") + code + b"s" for name, code in sides.items()}
    codes |= {
        "megabytes of integer as shape": tensor((4,)).replace(b"(" + whole(4) + b"t", long_sides, 1),
        "an integer of megabytes": b"\x8b" + struct.pack("<I", 20 * mebi) + b"\1" * 20 * mebi,
        "itself": b"}q\0" + text("state_dict") + b"h\0s",
        "itself in two": b"}q\0" + text("state_dict") + b"}" + text("state_dict") + b"h\0ss",
        "itself as embedding": b"}q\0" + text("string_to_param") + b"h\0s",
        "a list in itself": b"]q\0h\0a",
        "a tensor 2400 times": b"}(" + b"".join(text(f"k{i}") + weight for i in range(2400)) + b"u",
        "its arguments 2400 times": weight.replace(b"tR", b"tq\7R")
        + b"ctorch._utils\n_rebuild_tensor_v2\nh\7R0" * 2400,
        "two million instructions": b"]" + b"K\1a" * 2_000_000,
        "a deep list": b"]" * 1_000_000 + b"a" * 999_999,
        "a deep tuple as key": b"}N" + b"\x85" * 1_000_000 + b"Ns",
        "a deep tuple": b"N" + b"\x85" * 1_000_000,
        "a large memo index": b"Nr\xff\xff\xff\x7f",
        "a text of 4 GB": b"X\xff\xff\xff\xff",
        "bytes of 2^50": b"\x8e" + struct.pack("<Q", 1 << 50),
        "a frame of 2^50": b"\x95" + struct.pack("<Q", 1 << 50),
        "a bytearray of 2^34": b"cbuiltins\nbytearray\n" + whole(1 << 34) + b"\x85R",
        "a tensor constructed": b"ctorch\nFloatTensor\n" + whole(1 << 34) + b"\x85R",
        "a storage constructed": b"ctorch.storage\nUntypedStorage\n" + whole(1 << 34) + b"\x85R",
        "a tensor without data": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(N"
        + whole(1 << 40)
        + b"tR",
        "copies of a list": b"("
        + b"K\1" * 4000
        + b"lq\0"
        + b"ccollections\nCounter\nh\0\x85R0" * 1900
        + b"N",
        "an endless text line": b"S'" + b"a" * 4_000_000,
        "numbers as text": b"I" + b"9" * 1_000_000 + b"\n",
        "nothing": b"",
    }
    for name, code in codes.items():
        content = b"\x80\2" + code + b"."
        forms = {"archive": archive(content, {"0": bytes(mebi)}), "older": _older(content)}
        if len(content) > 1000:
            forms["compressed"] = archive(content, {"0": bytes(mebi)}, zipfile.ZIP_DEFLATED)
        for reader, file in _FILES[::2]:
            for form, stored in forms.items():
                case = f"{name}, {form}, as {file}"
                yield Case("pickles that claim sizes", case, reader, written(file, stored))
