"""How a picture was made, as its file tells: written for every picture, and read to make it again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sd2rt.engines.bundle.cache import named_bundle
from sd2rt.engines.bundle.manifest import MANIFEST, Manifest
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.runtime.images.read import read_text
from sd2rt.runtime.metadata.infotext import parse_parameters
from sd2rt.runtime.metadata.infotext_import import A1111Settings, shown
from sd2rt.runtime.request.request import Request, make_request

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd2rt.engines.lora.file import Lora

CHUNK = "sd2rt"
"""The PNG's text that is this project's own."""
A1111_CHUNK = "parameters"

INPUTS = ("image", "mask_image", "depth_map", "latents", "prompt_embeds", "negative_prompt_embeds")
"""Fields of a request that a file has no place for: it says their hashes. Nor may one name files to read."""

_FIELDS_NOT_RECORDED = (*INPUTS, "max_image_pixels", "output_type", "num_images_per_prompt")
"""Neither are these in it: they are of the call, not of the one picture."""

_MOST_NOTES = 20

_IDENTITY_DIGITS = 64

_OPTIONS = {"image": "--image", "mask_image": "--mask", "depth_map": "--depth"}


class LoraReference(BaseModel):
    """A LoRA as a file tells of it."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: str
    scale: float | None = None
    sha256: str = ""
    """The beginning of its file's hash, where that is known."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a picture's file tells of how it was made."""

    path: str
    fields: dict[str, Any]
    """Of a :class:`~sd2rt.runtime.request.request.Request`, checked; all that were not at their defaults."""
    notes: tuple[str, ...] = ()
    """What cannot be honoured, a line each."""
    inputs: dict[str, str | None] = field(default_factory=dict)
    """Pictures and arrays that must be given again, by field, with their hashes where they are known."""
    bundle: str | None = None
    identity: str | None = None
    """Of the bundle, in full; or the first ten digits of its checkpoint's hash, from AUTOMATIC1111's text."""
    tile: int | None = None
    """The pipeline's ``tile``, where it was not the usual one."""
    embeddings: dict[str, str] = field(default_factory=dict)
    """Textual inversions that the pipeline had, by token, with the beginnings of their files' hashes."""
    loras: tuple[LoraReference, ...] = ()
    """LoRAs that the pipeline had."""
    upscaled: Recipe | None = None
    """What was made of the picture afterwards, by an upscaler's bundle."""

    def bundle_path(self) -> Path:
        """Where its bundle lies.

        Raises:
            RequestError: no bundle of that name is in the cache; a file does not tell where else to look.
        """
        try:
            found = None if self.bundle is None else named_bundle(self.bundle)
        except BundleError:
            found = None
        # Not pathlib, which raises for a name that is too long.
        if found is None or not os.path.isfile(found / MANIFEST):
            told = (
                "does not name its bundle"
                if self.bundle is None
                else f"is of the bundle {shown(self.bundle)}"
            )
            raise RequestError(
                f"{self.path} {told}, which is not in the cache: name a bundle before the prompt"
            )
        return found

    def bundle_notes(self, manifest: Manifest) -> list[str]:
        """What there is to say where the picture is made again with this bundle."""
        if self.identity is None:
            return []
        name = "an unnamed one" if self.bundle is None else shown(self.bundle)
        made = f"{self.path} was made with"
        if len(self.identity) == _IDENTITY_DIGITS:
            same = self.identity == manifest.identity
            return (
                []
                if same
                else [f"{made} another bundle than {manifest.name} ({name}, {shown(self.identity, 10)})"]
            )
        files = manifest.source.files.values()
        if any(known.startswith(self.identity.lower()) for known in files):
            return []
        return [
            f"{made} the model {name} ({shown(self.identity)}), {manifest.name} was built from other files"
        ]

    def embedding_notes(self, given: Mapping[str, str]) -> list[str]:
        """What there is to say where the pipeline has these embeddings: their files' hashes, by token."""
        notes = (_embedding_note(token, wanted, given) for token, wanted in self.embeddings.items())
        return [note for note in notes if note is not None]

    def lora_notes(self, given: Sequence[Lora]) -> list[str]:
        """What there is to say where the pipeline has these LoRAs."""
        notes = (_lora_note(told, given) for told in self.loras)
        return [note for note in notes if note is not None]

    def check_inputs(self, request: Request, replaced: Collection[str] = ()) -> list[str]:
        """Compare what a request is given with what the picture was made from; what to say where it differs.

        ``replaced`` are inputs in whose place something else is given.

        Raises:
            RequestError: something is missing.
        """
        notes = []
        for name, expected in self.inputs.items():
            if name in replaced:
                continue
            given, what = getattr(request, name), name.replace("_", " ")
            if given is None:
                how = (
                    f"give it again with {_OPTIONS[name]}"
                    if name in _OPTIONS
                    else "that is for Python: give it there"
                )
                raise RequestError(
                    f"{self.path} was made from {_article(what)}, which it does not hold: {how}"
                )
            if expected is not None and digest(given) != expected:
                notes.append(f"the {what} is not the one that {self.path} was made from")
        return notes


def _embedding_note(token: str, wanted: str, given: Mapping[str, str]) -> str | None:
    if token not in given:
        which = f"{shown(token)} ({shown(wanted)})" if wanted else shown(token)
        return f"the embedding {which} is not in it: give its file with --embedding"
    if not given[token].startswith(wanted):
        return f"the embedding {shown(token)} is another file than the one that it was made with"
    return None


def _lora_note(told: LoraReference, given: Sequence[Lora]) -> str | None:
    name, at = shown(told.name), "" if told.scale is None else f":{told.scale:g}"
    same = [
        lora
        for lora in given
        if lora.sha256.startswith(told.sha256) and (told.sha256 or lora.name == told.name)
    ]
    if not same:
        if any(lora.name == told.name for lora in given):
            return f"the LoRA {name} is another file than the one that it was made with"
        which = f"{name} ({shown(told.sha256)})" if told.sha256 else name
        return f"the LoRA {which} is not in it: give its file with --lora FILE{at}"
    if told.scale is not None and all(lora.scale != told.scale for lora in same):
        return f"the LoRA {name} is given at {same[0].scale:g}, it was made with it at {told.scale:g}"
    return None


def settings_of(request: Request) -> tuple[dict[str, Any], dict[str, str]]:
    """A resolved request as a file says it: what is not at its default, for JSON, and hashes of its inputs."""
    names = {
        name
        for name, known in Request.model_fields.items()
        if name not in _FIELDS_NOT_RECORDED
        and getattr(request, name) != known.get_default(call_default_factory=True)
    }
    inputs = {name: getattr(request, name) for name in INPUTS}
    hashes = {name: digest(value) for name, value in inputs.items() if value is not None}
    # By way of its text, which has null in the place of infinity.
    return json.loads(request.model_dump_json(include=names)), hashes


def digest(value: Image | np.ndarray[Any, Any]) -> str:
    """SHA-256 of a picture's mode, size and pixels, or of an array's type, shape and values."""
    if isinstance(value, np.ndarray):
        kind, data = f"{value.dtype.str} {list(value.shape)}", value.tobytes()
    else:
        kind, data = f"{value.mode} {list(value.size)}", value.tobytes()
    return hashlib.sha256(f"{kind}\n".encode() + data).hexdigest()


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read how a PNG was made: what sd2rt wrote into it, or else AUTOMATIC1111's text.

    Nothing in it names a file that would be read.

    Raises:
        RequestError: it cannot be read, is no PNG, tells nothing, or what it tells is wrong.
    """
    name = os.fspath(path)
    shown, text = read_text(name)
    if CHUNK in text:
        return _own(shown, text[CHUNK])
    if text.get(A1111_CHUNK, "").strip():
        return _imported(shown, text[A1111_CHUNK])
    raise RequestError(
        f"{shown} does not tell how it was made: give a PNG from sd2rt or AUTOMATIC1111's interface"
    )


class _Made(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    request: dict[str, Any]
    inputs: dict[str, str] = {}
    bundle: str | None = None
    identity: str | None = None
    tile: int | None = None
    embeddings: dict[str, str] = {}
    loras: list[LoraReference] = []


class _Chunk(_Made):
    upscaled: _Made | None = None


def _own(path: str, text: str) -> Recipe:
    try:
        made = _Chunk.model_validate(json.loads(text))
        first = _recipe(path, made)
        return first if made.upscaled is None else replace(first, upscaled=_recipe(path, made.upscaled))
    except ValidationError as error:
        wrong = error.errors()[0]
        reason = f"{'.'.join(map(str, wrong['loc'])) or 'it'}: {wrong['msg'].lower()}"
    except RecursionError:
        reason = "it is nested too deeply"
    except (RequestError, ValueError) as error:
        reason = str(error)
    raise RequestError(
        f"what {path} tells of itself is wrong ({shown(reason, 200)}): give another picture, or the options"
    )


def _recipe(path: str, made: _Made) -> Recipe:
    known = [
        name for name in made.request if name in Request.model_fields and name not in _FIELDS_NOT_RECORDED
    ]
    notes = [f"{shown(name)} is not honoured" for name in made.request if name not in known]
    fields = {name: made.request[name] for name in known}
    # Checked here, where it can be told that the file is wrong, and no option.
    make_request(**{"prompt": "", **fields})
    return Recipe(
        path=path,
        fields=fields,
        notes=_few(notes),
        inputs={name: value for name, value in made.inputs.items() if name in INPUTS},
        bundle=made.bundle,
        identity=made.identity,
        tile=made.tile,
        embeddings=made.embeddings,
        loras=tuple(made.loras[:_MOST_NOTES]),
    )


def _imported(path: str, text: str) -> Recipe:
    imported = A1111Settings(parse_parameters(text))
    given = {"image": imported.from_image, "mask_image": imported.masked}
    return Recipe(
        path=path,
        fields=imported.fields,
        notes=_few(imported.notes),
        inputs={name: None for name, needed in given.items() if needed},
        bundle=imported.model,
        identity=imported.model_hash,
        embeddings=dict.fromkeys(imported.embeddings, ""),
        loras=tuple(LoraReference(name=name, scale=scale) for name, scale in imported.loras[:_MOST_NOTES]),
    )


def _article(what: str) -> str:
    if what.endswith("s"):
        return what
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def _few(notes: list[str]) -> tuple[str, ...]:
    """A file may tell any number of things that are not known."""
    rest = len(notes) - _MOST_NOTES
    return (
        tuple(notes)
        if rest <= 0
        else (*notes[:_MOST_NOTES], f"{rest} more things that it tells are not honoured")
    )
