"""Read LoRA files: low-rank changes of a network's weights (arXiv:2106.09685)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.alphas import Alphas, read_alphas
from sd2rt.engines.lora.keys import Module, Role, made_for_xl, parse_key, unsupported_kind
from sd2rt.engines.path_argument import checked_path
from sd2rt.engines.printable import repr_of, shown
from sd2rt.engines.weights.safetensors import read_metadata, read_safetensors, read_whole

F32 = NDArray[np.float32]

_MAX_BYTES = 4 << 30
_MAX_KEYS_SHOWN = 3
_MAX_SCALE = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Low-rank change of one weight: ``factor * up @ mid @ down``, each a layer without bias."""

    down: F32  # [r, I] or [r, I, kh, kw]
    up: F32  # [O, r] or [O, r, 1, 1]
    mid: F32 | None  # [r, r, kh, kw], with a 1x1 down: LoCon's convolutions of three factors
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: [O, I], or [O, I, kh, kw]."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def delta(self, scale: float = 1.0) -> F32:
        """Compute ``scale * factor * up @ mid @ down`` in float32: [O, I * kh * kw].

        For linear layers the result is in Fortran order, like their weights in most graphs: adding arrays of
        different memory orders takes five times as long.
        """
        rank = self.down.shape[0]
        down = self.down.reshape(rank, -1)
        if self.mid is not None:
            down = np.tensordot(self.mid, down, (1, 0)).transpose(0, 3, 1, 2).reshape(rank, -1)
        # Scale a factor rather than the product, which is a hundred times as large.
        up: F32 = self.up.reshape(-1, rank) * np.float32(scale * self.factor)
        if self.shape[2:] in ((), (1, 1)):
            return (down.T @ up.T).T
        return up @ down


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA file, with the scale to apply it at."""

    name: str
    scale: float
    sha256: str
    """Hash of the file, followed by PEFT's ``adapter_config.json`` if the alphas come from there."""
    path: str
    layers: Mapping[Module, LowRank]


def read_lora(path: str | os.PathLike[str], *, scale: float = 1.0, name: str | None = None) -> Lora:
    """Read a LoRA's ``.safetensors`` file in the layout of kohya, diffusers (old or new) or PEFT.

    A weight changes by ``scale * (alpha / rank) * up @ down``; alpha defaults to the rank. For files in PEFT's
    layout it is read from the ``adapter_config.json`` beside them.

    Args:
        name: name of the LoRA in messages; None for the file's stem.

    Raises:
        RequestError: the file cannot be read, is not a plain LoRA of a UNet or text encoder, or has unknown keys or
            values that are not finite.
    """
    file = checked_path(path, "the LoRA")
    if (
        isinstance(scale, bool)
        or not isinstance(scale, int | float)
        or not -_MAX_SCALE <= scale <= _MAX_SCALE
    ):
        value = shown(repr_of(scale))
        raise RequestError(f"the scale of {file} is {value}: use a finite number, up to {_MAX_SCALE:g}")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"the name of {file} is {shown(repr_of(name))}: use text")
    data = _read(file)
    try:
        tensors = read_safetensors(data, integers=True)
        metadata = read_metadata(data)
    except ValueError as error:
        raise RequestError(f"{file} cannot be read ({error}): get the file again") from None
    _refuse_unsupported_kinds(file, tensors)
    alphas = read_alphas(file, tensors, metadata)
    layers = _layers(file, tensors, alphas)
    digest = hashlib.sha256(data)
    digest.update(alphas.beside)
    label = file.stem if name is None else name
    return Lora(label, float(scale), digest.hexdigest(), str(file), layers)


def named_loras(words: Sequence[str]) -> list[Lora]:
    """Read the LoRAs of ``FILE[:SCALE]`` arguments; the default scale is 1.

    A LoRA is named after its file's stem, or after its path if several files have the same stem.

    Raises:
        RequestError: see :func:`read_lora`.
    """
    pairs = [_file_and_scale(word) for word in words]
    stems = [Path(file).stem for file, _ in pairs]
    return [
        read_lora(file, scale=scale, name=stem if stems.count(stem) == 1 else file)
        for (file, scale), stem in zip(pairs, stems, strict=True)
    ]


def _file_and_scale(word: str) -> tuple[str, float]:
    file, colon, scale = word.rpartition(":")
    # A path may contain a colon.
    if not colon or os.path.exists(word):
        return word, 1.0
    try:
        return file, float(scale)
    except ValueError:
        return word, 1.0


def _read(path: Path) -> bytes:
    try:
        if os.path.isdir(path):
            raise RequestError(f"{path} is a folder: use the LoRA's .safetensors file in it")
        if path.suffix.lower() != ".safetensors" and os.path.exists(path):
            raise RequestError(f"{path} is not a .safetensors file: LoRAs are read from that format only")
        return read_whole(path, _MAX_BYTES)
    except ValueError as error:
        raise RequestError(f"{path} cannot be read ({error}): get the file again") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _refuse_unsupported_kinds(path: Path, tensors: Mapping[str, F32]) -> None:
    unsupported = unsupported_kind(tensors)
    if unsupported is not None:
        key, kind = unsupported
        raise RequestError(f"{path} contains {kind} ({key}), which is not supported: use a plain LoRA")
    xl_key = made_for_xl(tensors)
    if xl_key is not None:
        raise RequestError(
            f"{path} was made for Stable Diffusion XL ({xl_key}): find one for Stable Diffusion 2"
        )


def _layers(path: Path, tensors: Mapping[str, F32], alphas: Alphas) -> dict[Module, LowRank]:
    modules: dict[Module, dict[Role, F32]] = {}
    unknown = []
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            unknown.append(key)
            continue
        module, role = parsed
        if not np.isfinite(tensor).all():
            raise RequestError(f"{path} has values that are not finite ({key}): get the file again")
        if role in modules.setdefault(module, {}):
            raise RequestError(f"{path} has two {role} tensors of {module}: it is damaged, get it again")
        modules[module][role] = tensor
    if unknown:
        raise RequestError(
            f"{path} is not a recognised Stable Diffusion 2 LoRA: {len(unknown)} of its {len(tensors)} keys, such as "
            f"{', '.join(map(shown, unknown[:_MAX_KEYS_SHOWN]))}, do not fit the layouts of kohya, diffusers or PEFT"
        )
    if not modules:
        raise RequestError(f"{path} has no tensors: get the file again")
    return {module: _low_rank(path, module, roles, alphas) for module, roles in modules.items()}


def _low_rank(path: Path, module: Module, roles: Mapping[Role, F32], alphas: Alphas) -> LowRank:
    for role in ("down", "up"):
        if role not in roles:
            raise RequestError(f"{path} lacks the {role} factor of {module}: it is damaged, get it again")
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    rank = down.shape[0] if down.ndim else 0
    valid = down.ndim in (2, 4) and up.ndim in (2, 4) and rank > 0 and up.shape[1:] in ((rank,), (rank, 1, 1))
    if mid is not None:
        valid = valid and mid.ndim == 4 and mid.shape[:2] == (rank, rank) and down.shape[2:] in ((), (1, 1))
    if not valid:
        shapes = " and ".join(str(list(factor.shape)) for factor in (up, mid, down) if factor is not None)
        raise RequestError(f"{path}: {module} has factors of the shapes {shapes}, which do not match")
    alpha = roles.get("alpha")
    if alpha is not None and alpha.size != 1:
        raise RequestError(
            f"{path}: the alpha of {module} has the shape {list(alpha.shape)}, expected a number"
        )
    factor = alphas.factor(module, rank) if alpha is None else float(alpha.reshape(())) / rank
    return LowRank(down, up, mid, factor)
