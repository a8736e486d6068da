"""Recipes: read the generation metadata of a PNG, to reproduce the image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sd2rt.engines.bundle.cache import named_bundle, remembered_bundle
from sd2rt.engines.bundle.manifest import MANIFEST, Manifest, read_manifest
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.path_argument import checked_path
from sd2rt.engines.printable import shown
from sd2rt.runtime.images.read import read_png_text
from sd2rt.runtime.metadata.adapters import LoraReference, embedding_note, lora_note
from sd2rt.runtime.metadata.imported import ImportedSettings
from sd2rt.runtime.metadata.infotext import parse_parameters
from sd2rt.runtime.metadata.infotext_import import A1111Settings
from sd2rt.runtime.metadata.programs.detection import json_object, program_of
from sd2rt.runtime.metadata.programs.fooocus import is_fooocus_text, read_fooocus_text
from sd2rt.runtime.request.request import Request, make_request
from sd2rt.runtime.request.second_pass import RecordedSecondPass, SecondPass

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd2rt.engines.lora.file import Lora

CHUNK = "sd2rt"
"""Key of the PNG text chunk with sd2rt's metadata."""
A1111_CHUNK = "parameters"

INPUTS = ("image", "mask_image", "depth_map", "latents", "prompt_embeds", "negative_prompt_embeds")
"""Request fields too large to store. Files hold only their hashes, and never paths of files to read."""

_FIELDS_NOT_RECORDED = (*INPUTS, "max_image_pixels", "output_type", "num_images_per_prompt")
"""Request fields missing in files: the inputs, and settings of the call rather than of one image."""

_MAX_NOTES = 20

_IDENTITY_DIGITS = 64

_CLI_OPTIONS = {"image": "--image", "mask_image": "--mask", "depth_map": "--depth"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Generation settings read from an image file."""

    path: str
    fields: dict[str, Any]
    """Validated fields of a :class:`~sd2rt.runtime.request.request.Request` that differ from their defaults."""
    notes: tuple[str, ...] = ()
    """One line for each setting that is not supported."""
    inputs: dict[str, str | None] = field(default_factory=dict)
    """Images and arrays that must be passed again, by field, with their hashes (None if unknown)."""
    bundle: str | None = None
    identity: str | None = None
    """Full identity of the bundle, or, from another program, leading digits of its checkpoint's hash."""
    program: str | None = None
    """Another program that wrote the file."""
    place: str | None = None
    """Path of a bundle that was not in the cache, for messages."""
    tile: int | None = None
    """The pipeline's ``tile``, if it was not the default."""
    embeddings: dict[str, str] = field(default_factory=dict)
    """Textual inversions of the pipeline, by token, with the leading digits of their files' hashes."""
    loras: tuple[LoraReference, ...] = ()
    """LoRAs of the pipeline."""
    upscaled: Recipe | None = None
    """Settings of the upscaling that followed, if any."""
    second_pass: SecondPass | None = None
    """The pass over the enlarged picture that followed, if any."""

    def bundle_path(self) -> Path:
        """Return the path of the bundle: in the cache by its name, or by its identity where it was last.

        Raises:
            RequestError: the file names no bundle, or one that is in neither place.
        """
        try:
            path = None if self.bundle is None else named_bundle(self.bundle)
        except BundleError:
            path = None
        # Not pathlib, which raises if the name is too long.
        if path is not None and not os.path.isfile(path / MANIFEST):
            path = None
        if path is None or not self._made_with(path):
            # A path in the file is only shown: the cache knows where bundles were.
            elsewhere = None if self.identity is None else remembered_bundle(self.identity)
            if elsewhere is not None and self._made_with(elsewhere):
                return elsewhere
        if path is None:
            place = "" if self.place is None else f" in {shown(self.place, 500)}"
            kind = "bundle" if self.program is None else "model"
            problem = (
                "does not name its bundle"
                if self.bundle is None
                else f"was made with the {kind} {shown(self.bundle)}{place}, which is not in the cache"
            )
            raise RequestError(f"{self.path} {problem}: name a bundle before the prompt")
        return path

    def _made_with(self, path: Path) -> bool:
        """Return whether the bundle at a path has the recorded identity."""
        try:
            return read_manifest(path).identity == self.identity
        except BundleError:
            return False

    def bundle_notes(self, manifest: Manifest) -> list[str]:
        """Return notes on differences between this bundle and the recorded one."""
        if self.identity is None:
            return self._name_notes(manifest)
        name = "unnamed" if self.bundle is None else shown(self.bundle)
        made_with = f"{self.path} was made with"
        if len(self.identity) == _IDENTITY_DIGITS:
            same = self.identity == manifest.identity
            return (
                []
                if same
                else [
                    f"{made_with} a different bundle ({name}, {shown(self.identity, 10)}) than {manifest.name}"
                ]
            )
        files = manifest.source.files.values()
        if any(sha256.startswith(self.identity.lower()) for sha256 in files):
            return []
        return [
            f"{made_with} the model {name} ({shown(self.identity)}), but {manifest.name} was built from other files"
        ]

    def _name_notes(self, manifest: Manifest) -> list[str]:
        """Note on a model of another program, of which only the name is known."""
        stems = {PurePosixPath(name).stem for name in (*manifest.source.files, manifest.source.name)}
        if self.program is None or self.bundle is None or self.bundle in stems:
            return []
        return [
            f"{self.path} was made with the model {shown(self.bundle)} in {self.program}: whether {manifest.name} "
            "was built from it cannot be told"
        ]

    def embedding_notes(self, loaded: Mapping[str, str]) -> list[str]:
        """Return notes on differences between the loaded embeddings (file hashes by token) and the recorded ones."""
        notes = (embedding_note(token, sha256, loaded) for token, sha256 in self.embeddings.items())
        return [note for note in notes if note is not None]

    def lora_notes(self, loaded: Sequence[Lora]) -> list[str]:
        """Return notes on differences between the loaded LoRAs and the recorded ones."""
        notes = (lora_note(recorded, loaded) for recorded in self.loras)
        return [note for note in notes if note is not None]

    def check_inputs(self, request: Request, replaced: Collection[str] = ()) -> list[str]:
        """Compare a request's inputs with the recorded ones. Returns a note for each that differs.

        Inputs in ``replaced`` were deliberately exchanged and are not compared.

        Raises:
            RequestError: an input is missing.
        """
        notes = []
        for name, expected in self.inputs.items():
            if name in replaced:
                continue
            value, label = getattr(request, name), name.replace("_", " ")
            if value is None:
                remedy = (
                    f"pass it again with {_CLI_OPTIONS[name]}"
                    if name in _CLI_OPTIONS
                    else "pass it again from Python"
                )
                raise RequestError(
                    f"{self.path} was made from {_with_article(label)}, which the file does not contain: {remedy}"
                )
            if expected is not None and digest(value) != expected:
                notes.append(f"the {label} differs from the one that {self.path} was made from")
        return notes


def settings_of(request: Request) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a resolved request's fields that differ from their defaults, as JSON values, and its inputs' hashes."""
    names = {
        name
        for name, field_info in Request.model_fields.items()
        if name not in _FIELDS_NOT_RECORDED
        and getattr(request, name) != field_info.get_default(call_default_factory=True)
    }
    inputs = {name: getattr(request, name) for name in INPUTS}
    hashes = {name: digest(value) for name, value in inputs.items() if value is not None}
    # Through JSON text, which writes infinity as null.
    return json.loads(request.model_dump_json(include=names)), hashes


def digest(value: Image | np.ndarray[Any, Any]) -> str:
    """Hash an image's mode, size and pixels, or an array's dtype, shape and values, with SHA-256."""
    if isinstance(value, np.ndarray):
        kind, data = f"{value.dtype.str} {list(value.shape)}", value.tobytes()
    else:
        kind, data = f"{value.mode} {list(value.size)}", value.tobytes()
    return hashlib.sha256(f"{kind}\n".encode() + data).hexdigest()


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read the generation settings of an image file, written by sd2rt, AUTOMATIC1111 or another program.

    Those of ComfyUI, SwarmUI, InvokeAI, Fooocus and NovelAI are read as far as they have a meaning here; the others
    are named in ``notes``.

    The metadata is untrusted: no path in it is ever opened.

    Raises:
        RequestError: the file cannot be read, is not an image, or has no or invalid generation settings.
    """
    return recipe_of(*read_png_text(str(checked_path(path, "the image"))))


def recipe_of(name: str, text: dict[str, str]) -> Recipe:
    """Read the generation settings in the texts of an image file.

    Raises:
        RequestError: as :func:`read_recipe`.
    """
    if CHUNK in text:
        return _from_sd2rt(name, text[CHUNK])
    written = text.get(A1111_CHUNK, "")
    parameters = parse_parameters(written)
    if parameters.values and json_object(written) is None:
        settings = read_fooocus_text(parameters) if is_fooocus_text(parameters) else A1111Settings(parameters)
        return _from_program(name, settings)
    program, read = program_of(text) or (None, None)
    problem = "contains no generation settings"
    if program is not None:
        problem = f"contains settings of {program}, which cannot be read"
        if read is not None:
            try:
                return _from_program(name, read())
            except ValueError as error:
                problem += f" ({shown(str(error), 200)})"
    elif written.strip():
        problem = "contains a text without generation settings"
    raise RequestError(
        f"{name} {problem}: use a picture of sd2rt, AUTOMATIC1111, ComfyUI, SwarmUI, InvokeAI or Fooocus, or set the "
        "options"
    )


class _Generation(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    request: dict[str, Any]
    inputs: dict[str, str] = {}
    bundle: str | None = None
    identity: str | None = None
    place: str | None = None
    tile: int | None = None
    embeddings: dict[str, str] = {}
    loras: list[LoraReference] = []


class _Chunk(_Generation):
    upscaled: _Generation | None = None
    second_pass: RecordedSecondPass | None = None


def _from_sd2rt(path: str, text: str) -> Recipe:
    try:
        chunk = _Chunk.model_validate(parse_json(text))
        recipe = _recipe(path, chunk)
        if chunk.second_pass is not None:
            recipe = replace(recipe, second_pass=chunk.second_pass.checked(_FIELDS_NOT_RECORDED))
        return recipe if chunk.upscaled is None else replace(recipe, upscaled=_recipe(path, chunk.upscaled))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'].lower()}"
    except (RequestError, ValueError) as error:
        reason = str(error)
    raise RequestError(
        f"the generation settings in {path} are invalid ({shown(reason, 200)}): use another PNG, or set the options"
    )


def _recipe(path: str, generation: _Generation) -> Recipe:
    supported = [
        name
        for name in generation.request
        if name in Request.model_fields and name not in _FIELDS_NOT_RECORDED
    ]
    notes = [
        f"{shown(name)} is not supported and is ignored"
        for name in generation.request
        if name not in supported
    ]
    fields = {name: generation.request[name] for name in supported}
    # Validate here, so that the error blames the file and not an option.
    make_request(**{"prompt": "", **fields})
    return Recipe(
        path=path,
        fields=fields,
        notes=_limited(notes),
        inputs={name: value for name, value in generation.inputs.items() if name in INPUTS},
        bundle=generation.bundle,
        identity=generation.identity,
        place=generation.place,
        tile=generation.tile,
        embeddings=generation.embeddings,
        loras=tuple(generation.loras[:_MAX_NOTES]),
    )


def _from_program(path: str, imported: ImportedSettings) -> Recipe:
    """Make a recipe of another program's settings.

    Raises:
        RequestError: they do not make a request.
    """
    # Each field was checked by itself.
    make_request(**{"prompt": "", **imported.fields})
    used = {"image": imported.from_image, "mask_image": imported.masked}
    return Recipe(
        path=path,
        fields=imported.fields,
        notes=_limited(imported.notes),
        inputs={name: None for name, was_used in used.items() if was_used},
        bundle=imported.model,
        identity=imported.model_hash,
        program=imported.program,
        embeddings=dict.fromkeys(imported.embeddings, ""),
        loras=tuple(
            LoraReference(name=name, scale=scale, text_scale=imported.text_scales.get(name))
            for name, scale in imported.loras[:_MAX_NOTES]
        ),
        second_pass=imported.second_pass,
    )


def _with_article(label: str) -> str:
    if label.endswith("s"):
        return label
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def _limited(notes: list[str]) -> tuple[str, ...]:
    """Limit the notes: a file may contain any number of unknown settings."""
    rest = len(notes) - _MAX_NOTES
    return (
        tuple(notes)
        if rest <= 0
        else (*notes[:_MAX_NOTES], f"{rest} more settings are not supported and are ignored")
    )
