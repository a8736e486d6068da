"""Reading a LoRA's file: low-rank changes of a network's weights (arXiv:2106.09685)."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.alphas import Alphas, read_alphas
from sd2rt.engines.lora.keys import Module, Role, made_for_xl, other_kind, parse_key
from sd2rt.engines.weights.safetensors import read_metadata, read_safetensors

F32 = NDArray[np.float32]

_LARGEST_BYTES = 4 << 30
_SHOWN_KEYS = 3


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A change of one weight: ``factor`` times ``up`` after ``mid`` after ``down``, each a layer without bias."""

    down: F32  # [r, I] or [r, I, kh, kw]
    up: F32  # [O, r] or [O, r, 1, 1]
    mid: F32 | None  # [r, r, kh, kw], with a down of 1x1: LoCon's convolutions in three
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: [O, I], or [O, I, kh, kw]."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def delta(self, scale: float = 1.0) -> F32:
        """The change in float32, with ``factor`` and ``scale``: [O, I * kh * kw].

        A linear layer's lies in memory the other way around, as its weight does in most graphs: adding up arrays
        that lie across each other takes five times as long.
        """
        rank = self.down.shape[0]
        down = self.down.reshape(rank, -1)
        if self.mid is not None:
            down = np.tensordot(self.mid, down, (1, 0)).transpose(0, 3, 1, 2).reshape(rank, -1)
        # On the smaller factor: the product is a hundred times as large.
        up: F32 = self.up.reshape(-1, rank) * np.float32(scale * self.factor)
        if self.shape[2:] in ((), (1, 1)):
            return (down.T @ up.T).T
        return up @ down


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA's file, and how strongly it is applied."""

    name: str
    scale: float
    sha256: str
    """Of the file; with PEFT's ``adapter_config.json`` after it, where the alphas are in that."""
    path: str
    layers: Mapping[Module, LowRank]


def read_lora(path: str | os.PathLike[str], *, scale: float = 1.0, name: str | None = None) -> Lora:
    """Read a LoRA's ``.safetensors`` file in kohya's layout, diffusers' (old and new), or PEFT's.

    A weight changes by ``scale * (alpha / rank) * up @ down``; alpha is the rank where none is given. For PEFT's
    own files it is read from the ``adapter_config.json`` beside them.

    Args:
        name: None for the file's own.

    Raises:
        RequestError: it cannot be read, holds something else than a plain LoRA of a UNet or text encoder, a key of
            unknown form, or values that are not finite.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise RequestError(f"the scale of {os.fspath(path)} is {scale!r}: give a finite number")
    file = Path(path)
    data = _read(file)
    try:
        tensors = read_safetensors(data, whole=True)
        metadata = read_metadata(data)
    except ValueError as error:
        raise RequestError(f"{file} cannot be read ({error}): get the file again") from None
    _refuse_other_kinds(file, tensors)
    alphas = read_alphas(file, tensors, metadata)
    layers = _layers(file, tensors, alphas)
    digest = hashlib.sha256(data)
    digest.update(alphas.beside)
    own = file.stem if name is None else name
    return Lora(own, float(scale), digest.hexdigest(), str(file), layers)


def named_loras(words: Sequence[str]) -> list[Lora]:
    """Read what ``FILE[:SCALE]`` names, a LoRA each; scale 1 where none is given.

    A file whose name is another's too is called by its path.

    Raises:
        RequestError: as :func:`read_lora`.
    """
    pairs = [_file_and_scale(word) for word in words]
    stems = [Path(file).stem for file, _ in pairs]
    return [
        read_lora(file, scale=scale, name=stem if stems.count(stem) == 1 else file)
        for (file, scale), stem in zip(pairs, stems, strict=True)
    ]


def _file_and_scale(word: str) -> tuple[str, float]:
    file, colon, scale = word.rpartition(":")
    # A path may have a colon in it.
    if not colon or os.path.exists(word):
        return word, 1.0
    try:
        return file, float(scale)
    except ValueError:
        return word, 1.0


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise RequestError(f"{path} is a folder: give the LoRA's .safetensors file in it")
        if path.stat().st_size > _LARGEST_BYTES:
            raise RequestError(f"{path} has {path.stat().st_size} bytes: it is larger than any LoRA")
        if path.suffix.lower() != ".safetensors":
            raise RequestError(f"{path} is no .safetensors file: LoRAs are read from that format only")
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _refuse_other_kinds(path: Path, tensors: Mapping[str, F32]) -> None:
    other = other_kind(tensors)
    if other is not None:
        key, kind = other
        raise RequestError(f"{path} holds {kind} ({key}), which is not supported: give a plain LoRA")
    key_of_xl = made_for_xl(tensors)
    if key_of_xl is not None:
        raise RequestError(
            f"{path} was made for Stable Diffusion XL ({key_of_xl}): find one for Stable Diffusion 2"
        )


def _layers(path: Path, tensors: Mapping[str, F32], alphas: Alphas) -> dict[Module, LowRank]:
    found: dict[Module, dict[Role, F32]] = {}
    unknown = []
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            unknown.append(key)
            continue
        module, role = parsed
        if not np.isfinite(tensor).all():
            raise RequestError(f"{path} holds values that are not finite ({key}): get the file again")
        if role in found.setdefault(module, {}):
            raise RequestError(f"{path} holds {module}'s {role} twice: it is damaged, get it again")
        found[module][role] = tensor
    if unknown:
        raise RequestError(
            f"{path} is no LoRA of Stable Diffusion 2 that is known: {len(unknown)} of its {len(tensors)} keys, "
            f"such as {', '.join(unknown[:_SHOWN_KEYS])}, are of none of the layouts of kohya, diffusers and PEFT"
        )
    if not found:
        raise RequestError(f"{path} holds no tensors: get the file again")
    return {module: _low_rank(path, module, roles, alphas) for module, roles in found.items()}


def _low_rank(path: Path, module: Module, roles: Mapping[Role, F32], alphas: Alphas) -> LowRank:
    for role in ("down", "up"):
        if role not in roles:
            raise RequestError(f"{path} lacks the {role} factor of {module}: it is damaged, get it again")
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    rank = down.shape[0] if down.ndim else 0
    sound = down.ndim in (2, 4) and up.ndim in (2, 4) and rank > 0 and up.shape[1:] in ((rank,), (rank, 1, 1))
    if mid is not None:
        sound = sound and mid.ndim == 4 and mid.shape[:2] == (rank, rank) and down.shape[2:] in ((), (1, 1))
    if not sound:
        shapes = " and ".join(str(list(factor.shape)) for factor in (up, mid, down) if factor is not None)
        raise RequestError(f"{path}: {module} has factors of the shapes {shapes}, which do not go together")
    alpha = roles.get("alpha")
    if alpha is not None and alpha.size != 1:
        raise RequestError(
            f"{path}: the alpha of {module} has the shape {list(alpha.shape)}, expected a number"
        )
    factor = alphas.factor(module, rank) if alpha is None else float(alpha.reshape(())) / rank
    return LowRank(down, up, mid, factor)
