"""Read adapter files: LoRA (arXiv:2106.09685) and its relatives, changes of a network's weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.alphas import read_alphas
from sd2rt.engines.lora.change import WeightChange
from sd2rt.engines.lora.keys import BUNDLED_EMBEDDING, Module, made_for_xl, unsupported_kind
from sd2rt.engines.lora.layers import changes_of
from sd2rt.engines.path_argument import checked_path
from sd2rt.engines.printable import repr_of, shown
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.weights.safe_pickle import ForbiddenError, PickledTensor, read_pickled
from sd2rt.engines.weights.safetensors import read_metadata, read_safetensors, read_whole

F32 = NDArray[np.float32]

_MAX_BYTES = 4 << 30
_MAX_INSTRUCTIONS = 1_000_000
_PICKLES = (".bin", ".pt", ".pth")
_MAX_SCALE = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA file, with the scales to apply it at."""

    name: str
    scale: float
    """Scale of the changes of the UNet."""
    sha256: str
    """Hash of the file, followed by PEFT's ``adapter_config.json`` if the alphas come from there."""
    path: str
    layers: Mapping[Module, WeightChange]
    text_scale: float = 1.0
    """Scale of the changes of the text encoder."""
    embeddings: Mapping[str, Mapping[str, F32]] = field(default_factory=dict)
    """Textual inversions that the file holds too: their tensors, by name in prompts."""

    def scale_of(self, part: str) -> float:
        """Return the scale of a network's or part's changes."""
        return self.text_scale if part == "text_encoder" else self.scale

    @property
    def is_zero(self) -> bool:
        """True if all changes are seen to be zero, so that the LoRA has no effect at any scale."""
        return bool(self.layers) and all(change.is_zero for change in self.layers.values())

    @property
    def scales(self) -> str:
        """Both scales, or the one that both are, as in ``--lora FILE:SCALES``."""
        if self.text_scale == self.scale:
            return f"{self.scale:g}"
        return f"{self.scale:g}:{self.text_scale:g}"


def read_lora(
    path: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    text_scale: float | None = None,
    name: str | None = None,
    allow_pickle: bool = False,
) -> Lora:
    """Read an adapter's file in the layout of kohya, LyCORIS, diffusers, PEFT or ComfyUI.

    Kinds are LoRA, LoCon, DoRA, LoHa, LoKr, (IA)^3 and whole differences. A weight of a plain LoRA changes by
    ``scale * (alpha / rank) * up @ down``; alpha defaults to the rank. For files in PEFT's layout it is read from the
    ``adapter_config.json`` beside them.

    Args:
        scale: of the UNet's changes.
        text_scale: of the text encoder's changes; None for ``scale``.
        name: name of the LoRA in messages; None for the file's stem.
        allow_pickle: read ``.bin``, ``.pt`` and ``.pth`` files, of which only tensors are read and no code is run.

    Raises:
        RequestError: the file cannot be read, is of a kind that cannot be merged, is not for a UNet or text encoder,
            or has unknown keys or values that are not finite.
    """
    file = checked_path(path, "the LoRA")
    text_scale = scale if text_scale is None else text_scale
    for value in (scale, text_scale):
        _check_scale(file, value)
    if name is not None and not isinstance(name, str):
        raise RequestError(f"the name of {file} is {shown(repr_of(name))}: use text")
    data = _read(file, allow_pickle)
    try:
        if file.suffix.lower() in _PICKLES:
            tensors, metadata = _pickled(file, data), {}
        else:
            tensors, metadata = read_safetensors(data, integers=True), read_metadata(data)
    except ValueError as error:
        raise RequestError(f"{file} cannot be read ({error}): get the file again") from None
    embeddings = take_bundled(tensors)
    _refuse_unsupported_kinds(file, tensors)
    alphas = read_alphas(file, tensors, metadata)
    layers = changes_of(file, tensors, alphas)
    if not layers and not embeddings:
        raise RequestError(f"{file} has no tensors: get the file again")
    digest = hashlib.sha256(data)
    digest.update(alphas.beside)
    label = file.stem if name is None else name
    return Lora(label, float(scale), digest.hexdigest(), str(file), layers, float(text_scale), embeddings)


def _check_scale(file: Path, scale: object) -> None:
    if (
        isinstance(scale, bool)
        or not isinstance(scale, int | float)
        or not -_MAX_SCALE <= scale <= _MAX_SCALE
    ):
        value = shown(repr_of(scale))
        raise RequestError(f"the scale of {file} is {value}: use a finite number, up to {_MAX_SCALE:g}")


def take_bundled(tensors: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """Take textual inversions out of a file's tensors: ``bundle_emb.NAME.KEY``, as AUTOMATIC1111 reads them."""
    embeddings: dict[str, dict[str, Any]] = {}
    for key in [key for key in tensors if isinstance(key, str) and key.startswith(BUNDLED_EMBEDDING)]:
        name, _, rest = key.removeprefix(BUNDLED_EMBEDDING).partition(".")
        embeddings.setdefault(name, {})[rest.removeprefix("string_to_param.")] = tensors.pop(key)
    return embeddings


def _pickled(path: Path, data: bytes) -> dict[str, F32]:
    try:
        state = read_pickled(data, max_instructions=_MAX_INSTRUCTIONS, max_bytes=_MAX_BYTES)
    except ForbiddenError as error:
        raise RequestError(
            f"{path} holds more than tensors ({error}) and might run code: it was not loaded"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise RequestError(
            f"{path} holds a {type(state).__name__}, expected named tensors: get the file again"
        )
    return {
        key: value.array.astype(np.float32)
        for key, value in state.items()
        if isinstance(value, PickledTensor)
    }


def named_loras(words: Sequence[str], *, allow_pickle: bool = False) -> list[Lora]:
    """Read the LoRAs of ``FILE[:SCALE[:TEXT_SCALE]]`` arguments; the default scale is 1, for both networks.

    A LoRA is named after its file's stem, or after its path if several files have the same stem.

    Raises:
        RequestError: see :func:`read_lora`.
    """
    read = [file_and_scales(word) for word in words]
    stems = [Path(file).stem for file, _ in read]
    return [
        read_lora(
            file,
            scale=scales[0] if scales else 1.0,
            text_scale=scales[-1] if scales else None,
            name=stem if stems.count(stem) == 1 else file,
            allow_pickle=allow_pickle,
        )
        for (file, scales), stem in zip(read, stems, strict=True)
    ]


def file_and_scales(word: str) -> tuple[str, tuple[float, ...]]:
    """Split ``FILE[:SCALE[:TEXT_SCALE]]`` into the file and up to two scales. A path may contain a colon."""
    scales: tuple[float, ...] = ()
    while len(scales) < 2 and not os.path.exists(word):
        file, colon, scale = word.rpartition(":")
        try:
            number = float(scale)
        except ValueError:
            break
        if not colon:
            break
        word, scales = file, (number, *scales)
    return word, scales


def _read(path: Path, allow_pickle: bool) -> bytes:
    try:
        if os.path.isdir(path):
            raise RequestError(f"{path} is a folder: use the LoRA's .safetensors file in it")
        suffix = path.suffix.lower()
        if suffix in _PICKLES and os.path.exists(path):
            if not allow_pickle:
                raise RequestError(
                    f"{path} is not a .safetensors file but a pickle, a format that can carry code: use a "
                    ".safetensors of the same LoRA, or allow pickles (--allow-pickle), of which only tensors are read"
                )
            return read_regular(path, _MAX_BYTES)
        if suffix != ".safetensors" and os.path.exists(path):
            raise RequestError(
                f"{path} is not a .safetensors file: LoRAs are read from that format, and from .bin "
                "with --allow-pickle"
            )
        return read_whole(path, _MAX_BYTES)
    except ValueError as error:
        raise RequestError(f"{path} cannot be read ({error}): get the file again") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _refuse_unsupported_kinds(path: Path, tensors: Mapping[str, F32]) -> None:
    unsupported = unsupported_kind(tensors)
    if unsupported is not None:
        key, kind = unsupported
        raise RequestError(
            f"{path} contains {kind} ({shown(key, 120)}), which is not supported: use a LoRA, LoHa, LoKr or (IA)^3"
        )
    xl_key = made_for_xl(tensors)
    if xl_key is not None:
        raise RequestError(
            f"{path} was made for Stable Diffusion XL ({shown(xl_key, 120)}): find one for Stable Diffusion 2"
        )
