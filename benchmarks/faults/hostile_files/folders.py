"""Files of folders: configurations of a checkpoint, manifests, and JSON beside a LoRA; devices, pipes and links."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.hostile_files.case import Case, Cases, ReaderName, written

_JSON: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[1, 2]",
    "a number": b"5",
    "null": b"null",
    "truncated": b'{"a": [1, 2',
    "not text": b"\xff\xfe\x00\xd8" * 10,
    "nul": b"\0" * 1000,
    "deep lists": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 300_000,
    "closed lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a long number": b'{"a": ' + b"9" * 1_000_000 + b"}",
    "many empty lists": b'{"a": [' + b"[]," * 8_000_000 + b"[]]}",
    "70 MB of spaces": b" " * (70 << 20) + b"{}",
    "the same key": b"{" + b'"a": 1, ' * 100_000 + b'"a": 2}',
}

_DEVICE_GROUP = "devices, pipes and links"
_UNET = "unet/diffusion_pytorch_model.safetensors"
_PEFT = "adapter_config.json"
# Tokenizers without these two are complete.
_OPTIONAL = ("special_tokens_map.json", "tokenizer_config.json")
_LORA_KEY = "base_model.model.unet.mid_block.attentions.0.proj_in.lora_A.weight"


class Folders:
    """Folders that cases copy.

    Args:
        checkpoint: a small checkpoint in diffusers' layout.
        bundle: a small bundle.
    """

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        self._checkpoint, self._bundle = checkpoint, bundle

    def json_files(self) -> Cases:
        """Hostile JSON in the place of every JSON file."""
        for name, content in _JSON.items():
            for file in sorted(self._checkpoint.rglob("*.json")):
                path = str(file.relative_to(self._checkpoint))
                make = self._changed(path, content)
                yield Case("JSON", f"{name}, in {path}", "folder", make, file.name in _OPTIONAL)
            index = self._changed(f"{_UNET}.index.json", content, without=_UNET)
            yield Case("JSON", f"{name}, in {_UNET}.index.json", "folder", index)
            yield Case("JSON", f"{name}, in bundle.json", "manifest", written_in("bundle.json", content))
            yield Case("JSON", f"{name}, as a result", "result", written("a.json", content))
            yield Case("JSON", f"{name}, in {_PEFT}", "lora", _peft(content))

    def claims(self) -> Cases:
        """Configurations and manifests whose numbers are large."""
        for part in ("unet", "text_encoder", "vae", "scheduler"):
            (file,) = (self._checkpoint / part).glob("*config.json")
            config = json.loads(file.read_text())
            for key, value in config.items():
                values: tuple[Any, ...] = ()
                if type(value) is int:
                    values = (10**7, 10**12, 10**30, -1, 0)
                elif isinstance(value, list):
                    values = (value * 100_000, [10**9] * len(value), [])
                for large in values:
                    content = json.dumps({**config, key: large}).encode()
                    shown = str(large)[:20]
                    make = self._changed(str(file.relative_to(self._checkpoint)), content)
                    yield Case(
                        "sizes in configurations", f"{part} {key} {shown}", "folder", make, may_be_read=True
                    )
        manifest = json.loads((self._bundle / "bundle.json").read_text())
        for path, value in _numbers(manifest):
            for large in (10**9, 10**18, 10**40, -1):
                changed = json.loads(json.dumps(manifest))
                _set(changed, path, type(value)(large) if isinstance(value, int) else large)
                content = json.dumps(changed).encode()
                yield Case(
                    "sizes in manifests",
                    f"{'.'.join(map(str, path))} {large}",
                    "manifest",
                    written_in("bundle.json", content),
                    may_be_read=True,
                )

    def devices(self) -> Cases:
        """A device, a pipe without a writer, or a link to one in the place of every file that is read."""
        suffixes: dict[ReaderName, str] = {
            "image": ".png",
            "depth": ".png",
            "recipe": ".png",
            "embedding": ".safetensors",
            "lora": ".safetensors",
            "checkpoint": ".safetensors",
            "result": ".json",
        }
        for kind in _DEVICES:
            for reader, suffix in suffixes.items():
                yield Case(_DEVICE_GROUP, f"{kind} as {reader}", reader, _device(kind, f"a{suffix}"))
            yield Case(_DEVICE_GROUP, f"{kind} as a.pt", "embedding", _device(kind, "a.pt"))
            yield Case(_DEVICE_GROUP, f"{kind} as a.ckpt", "checkpoint", _device(kind, "a.ckpt"))
            manifest = _inside(_device(kind, "bundle.json"))
            yield Case(_DEVICE_GROUP, f"{kind} as bundle.json", "manifest", manifest)
            yield Case(_DEVICE_GROUP, f"{kind} as {_PEFT}", "lora", _peft_beside(kind))
            for source in sorted(path for path in self._checkpoint.rglob("*") if path.is_file()):
                path = str(source.relative_to(self._checkpoint))
                make = self._changed(path, None, kind=kind)
                yield Case(_DEVICE_GROUP, f"{kind} as {path}", "folder", make, source.name in _OPTIONAL)

    def _changed(
        self, path: str, content: bytes | None, *, without: str | None = None, kind: str | None = None
    ) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            copy = folder / "checkpoint"
            shutil.copytree(self._checkpoint, copy, copy_function=os.link)
            for name in (path, without):
                if name is not None:
                    (copy / name).unlink(missing_ok=True)
            if content is not None:
                (copy / path).write_bytes(content)
            if kind is not None:
                _DEVICES[kind](copy / path)
            return copy

        return make


def written_in(name: str, content: bytes) -> Callable[[Path], Path]:
    """Make a folder with this file."""
    return _inside(written(name, content))


def _inside(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        make(folder)
        return folder

    return made


def _numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Paths and values of the numbers in a manifest; of lists the first item only."""
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in _numbers(inner, (*path, key))]
    if isinstance(value, list):
        return _numbers(value[0], (*path, 0)) if value else []
    return [(path, value)] if type(value) in (int, float) else []


def _set(value: Any, path: tuple[Any, ...], number: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = number


def _peft(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / _PEFT).write_bytes(content)
        return _lora(folder)

    return make


def _peft_beside(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _DEVICES[kind](folder / _PEFT)
        return _lora(folder)

    return make


def _lora(folder: Path) -> Path:
    entry = {_LORA_KEY: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    header = json.dumps(entry).encode()
    path = folder / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path


def _device(kind: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        _DEVICES[kind](path)
        return path

    return make


def _pipe_behind_a_link(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


_DEVICES: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a link to a pipe": _pipe_behind_a_link,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
    "a link to /dev/urandom": lambda path: path.symlink_to("/dev/urandom"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("none"),
    "a folder": lambda path: path.mkdir(),
}
