"""The manifest `bundle.json`, which describes a bundle, with its validation."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from sd2rt.engines.bundle.cache import MANIFEST as MANIFEST
from sd2rt.engines.bundle.cache import MAX_MANIFEST_BYTES as MAX_MANIFEST_BYTES
from sd2rt.engines.bundle.checksum import CHECKSUM, checksum
from sd2rt.engines.bundle.engine_entry import EngineEntry
from sd2rt.engines.bundle.model_kinds import (
    KINDS,
    TASKS,
    Condition,
    Defaults,
    ModelKind,
    PartName,
    TaskName,
    with_masks,
)
from sd2rt.engines.bundle.part_interface import TEXT_LENGTH, Dimensions, check_interface
from sd2rt.engines.bundle.sampler_config import NoiseConfig, SamplerConfig
from sd2rt.engines.bundle.schema import LICENSE_FOLDER, File, Latents, Model, Part, Precision, Sha256
from sd2rt.engines.bundle.sizes import LARGEST_SIDE, check_sides
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.printable import printable
from sd2rt.engines.regular_file import read_regular

SCHEMA_VERSION: Literal[4] = 4
_MAX_SIZES_SHOWN = 4


class Embeddings(Model):
    """Token embedding table, looked up on the host, with facts of its text encoder."""

    file: File
    tokens: int = Field(ge=1, le=1 << 24)
    width: int = Field(ge=1, le=1 << 16)
    dtype: Literal["float32", "float16"]
    layers: int = Field(ge=1, le=1024)
    """Number of layers of the text encoder; ``clip_skip`` can end it after any of them."""


class Tokenizer(Model):
    """Tokenizer file, sequence length and special token ids."""

    file: File
    max_length: int = Field(ge=3, le=1 << 16)
    bos: int = Field(ge=0, le=1 << 24)
    eos: int = Field(ge=0, le=1 << 24)
    pad: int = Field(ge=0, le=1 << 24)


class LowResolution(Model):
    """Noise schedule and maximum noise level of the upscaler's low-resolution image."""

    noise: NoiseConfig
    max_noise_level: int = Field(ge=0)

    @model_validator(mode="after")
    def _within_the_schedule(self) -> LowResolution:
        if self.max_noise_level >= self.noise.num_train_timesteps:
            raise ValueError(f"max_noise_level {self.max_noise_level} is not a timestep of the schedule")
        return self


_Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
_Finite = Annotated[float, Field(ge=-1e6, le=1e6)]

_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


class DepthInput(Model):
    """Preprocessing for the depth estimator: resize ignoring aspect ratio, scale to 0..1, normalise."""

    size: tuple[_Side, _Side]
    """Width and height in pixels."""
    resample: Literal["bilinear", "bicubic"]
    mean: tuple[_Finite, _Finite, _Finite]
    std: tuple[_Positive, _Positive, _Positive]


_Coefficient = Annotated[float, Field(ge=-100, le=100)]


class PreviewMatrix(Model):
    """Affine map from the channels of a latent to a colour, for rough pictures without the decoder."""

    matrix: Annotated[
        tuple[tuple[_Coefficient, _Coefficient, _Coefficient], ...], Field(min_length=2, max_length=1025)
    ]
    """[C + 1, 3]: a row for each channel, then the offset. Colours are in [0, 1]."""
    error: float = Field(ge=0, le=1)
    """Root mean square of the difference from the decoded colours that it was fitted to."""


MERGED_LORA = "LoRA "
"""Prefix of the entries of a source's files that are LoRAs, merged into the weights."""

OTHER_VAE = "VAE "
"""Prefix of the entries of a source's files that are an autoencoder instead of the checkpoint's own."""


class Source(Model):
    """Checkpoint that a bundle was built from."""

    name: str
    release: str | None
    files: dict[str, Sha256]


class Manifest(Model):
    """Complete description of a bundle."""

    schema_version: Literal[4]
    sd2rt_version: str
    build_key: Sha256
    """Hash of all inputs and options of the build: builds with equal keys are interchangeable."""
    name: str
    family: Literal["stable-diffusion-2"]
    variant: ModelKind
    tasks: dict[TaskName, Defaults]
    """Tasks that the bundle was made for, with the defaults of their requests."""
    conditions: tuple[Condition, ...]
    """Extra input channels of the denoiser, in order, after the latents."""
    low_resolution: LowResolution | None
    depth_input: DepthInput | None
    precision: Precision
    native_sizes: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)]
    """Width and height in pixels; the first is the default."""
    noise: NoiseConfig
    sampler: SamplerConfig
    latents: Latents
    tokenizer: Tokenizer
    embeddings: Embeddings
    parts: dict[PartName, Part]
    source: Source
    exporter: dict[str, str]
    license: str
    engines: tuple[EngineEntry, ...] = ()
    """Compiled engines, which are optional: a bundle is complete with ONNX graphs alone."""
    preview: PreviewMatrix | None = None
    """Fitted to the decoder when the bundle was built; None in bundles of earlier versions."""
    license_files: tuple[File, ...] = ()
    """Texts of the checkpoint's licence and its model card, in ``license/``, if it came with them."""
    checksum: Sha256 | None = None
    """Of the other entries, in a file; :func:`read_manifest` compares and drops it. Earlier versions wrote none."""

    @property
    def supported(self) -> dict[TaskName, Defaults]:
        """All tasks of requests for the bundle: those that it was made for, and inpainting where images do it."""
        return with_masks(self.tasks)

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        needed: set[PartName] = {"text_encoder", "denoiser", "decoder"}
        condition_names = {condition.name for condition in self.conditions}
        if "masked_image" in condition_names or any(
            task.strength is not None for task in self.tasks.values()
        ):
            needed.add("encoder")
        if "depth" in condition_names:
            needed.add("depth_estimator")
        if missing := needed - set(self.parts):
            raise ValueError(f"parts lack {', '.join(sorted(missing))}")
        if not self.tasks:
            raise ValueError("tasks is empty")
        for name, defaults in self.tasks.items():
            for option in ("strength", "noise_level"):
                if (option in TASKS[name].optional) != (getattr(defaults, option) is not None):
                    raise ValueError(f"task {name} and its default {option} do not match")
            if defaults.num_inference_steps > self.noise.num_train_timesteps:
                raise ValueError(f"task {name} takes more steps by default than the schedule has timesteps")
            if set(TASKS[name].conditions) != condition_names:
                raise ValueError(f"task {name} and the conditions {sorted(condition_names)} do not match")
        if ("depth" in condition_names) != (self.depth_input is not None):
            raise ValueError("depth_input and the condition depth need each other")
        if ("low_res" in condition_names) != (self.low_resolution is not None):
            raise ValueError("low_resolution and the condition low_res need each other")
        self._check_sizes()
        if unknown_parts := {engine.part for engine in self.engines} - set(self.parts):
            raise ValueError(
                f"engines are listed for parts that the bundle lacks: {', '.join(sorted(unknown_parts))}"
            )
        for engine in self.engines:
            for file, suffix in ((engine.file, ".engine"), (engine.report, ".json")):
                if PurePosixPath(file.path).parent != PurePosixPath(engine.part) or not file.path.endswith(
                    suffix
                ):
                    raise ValueError(f"{file.path} is not a valid path for an engine of {engine.part}")
        for file in self.license_files:
            if PurePosixPath(file.path).parent != PurePosixPath(LICENSE_FOLDER):
                raise ValueError(f"{file.path} is not a valid path for a licence")
        if shared_paths := {file.path for file in self._listed()} & {file.path for file in self.engine_files}:
            raise ValueError(f"{min(shared_paths)} is listed both as an engine file and as another file")
        by_path: dict[str, File] = {}
        for file in (*self._listed(), *self.engine_files):
            if by_path.setdefault(file.path, file) != file:
                raise ValueError(f"{file.path} is listed twice, with different contents")
        return self

    def _check_sizes(self) -> None:
        """Check that sizes, token ids and the parts' tensors belong together.

        Raises:
            ValueError: they do not.
        """
        for width, height in self.native_sizes:
            try:
                check_sides(width, height, self.latents.size_multiple)
            except RequestError as error:
                raise ValueError(f"native_sizes: {error}") from None
        kind = KINDS[self.variant]
        if self.conditions != kind.conditions:
            raise ValueError(f"conditions are not those of the kind {self.variant}")
        if self.latents.vae_factor != kind.vae_factor:
            raise ValueError(f"vae_factor {self.latents.vae_factor} is not that of the kind {self.variant}")
        if self.tokenizer.max_length != TEXT_LENGTH:
            raise ValueError(f"max_length {self.tokenizer.max_length} is not {TEXT_LENGTH}")
        for name in ("bos", "eos", "pad"):
            number = getattr(self.tokenizer, name)
            if number >= self.embeddings.tokens:
                raise ValueError(
                    f"the token {name} {number} is not one of the {self.embeddings.tokens} tokens"
                )
        level = self.tasks["upscaling"].noise_level if "upscaling" in self.tasks else None
        if (
            level is not None
            and self.low_resolution is not None
            and level > self.low_resolution.max_noise_level
        ):
            raise ValueError(f"the default noise level {level} is above max_noise_level")
        precision = "fp16" if self.embeddings.dtype == "float16" else "fp32"
        if self.parts["text_encoder"].precision != precision:
            raise ValueError(f"embeddings are {self.embeddings.dtype}, the text encoder is not {precision}")
        dimensions = Dimensions(
            text_width=self.embeddings.width,
            channels=self.latents.channels,
            factor=self.latents.vae_factor,
            extra=sum(condition.channels for condition in self.conditions),
            class_label=kind.class_label,
            depth_size=(1, 1) if self.depth_input is None else self.depth_input.size,
        )
        for part_name, part in self.parts.items():
            check_interface(part_name, part, dimensions)
        if self.preview is not None and len(self.preview.matrix) != self.latents.channels + 1:
            raise ValueError(
                f"the matrix of preview has {len(self.preview.matrix)} rows, for {self.latents.channels} channels "
                f"it needs {self.latents.channels + 1}"
            )

    def _listed(self) -> list[File]:
        files = [self.tokenizer.file, self.embeddings.file, *self.license_files]
        for part in self.parts.values():
            files += part.files
        return files

    @property
    def files(self) -> tuple[File, ...]:
        """All listed files except those of engines, without duplicates."""
        return tuple({file.path: file for file in self._listed()}.values())

    @property
    def engine_files(self) -> tuple[File, ...]:
        """Engine files and their reports, which are hashed every time an engine is opened."""
        return tuple(file for engine in self.engines for file in (engine.file, engine.report))

    @property
    def other_vae(self) -> dict[str, str]:
        """Files of an autoencoder that the build took instead of the checkpoint's own, with their hashes."""
        names = (name for name in self.source.files if name.startswith(OTHER_VAE))
        return {name.removeprefix(OTHER_VAE): self.source.files[name] for name in names}

    @property
    def merged_loras(self) -> dict[str, str]:
        """LoRAs that were merged into the weights by the build, by name and scale, with the hashes of their files."""
        names = (name for name in self.source.files if name.startswith(MERGED_LORA))
        return {name.removeprefix(MERGED_LORA): self.source.files[name] for name in names}

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest without engines, preview and licence files. Bundles with equal identities generate
        the same images, up to each backend's tolerance."""
        import hashlib

        entries = self.model_copy(update={"engines": (), "license_files": ()})._entries()
        del entries["preview"]
        return hashlib.sha256(_to_text(entries).encode()).hexdigest()

    def __repr__(self) -> str:
        """One-line summary: the repr of a bundle includes this, and a full manifest has thousands of lines."""
        sizes = ", ".join(f"{width}x{height}" for width, height in self.native_sizes[:_MAX_SIZES_SHOWN])
        more = ", ..." if len(self.native_sizes) > _MAX_SIZES_SHOWN else ""
        return (
            f"<Manifest {self.family} {self.variant} {self.precision}, {sizes}{more}, {self.identity[:12]}>"
        )

    __str__ = __repr__

    def to_json(self) -> str:
        """Serialise to the text of ``bundle.json``, with a checksum of all entries."""
        data = self._entries()
        return _to_text({**data, CHECKSUM: checksum(data)})

    def _entries(self) -> dict[str, Any]:
        # Without licence files, earlier versions read the manifest too.
        absent = {CHECKSUM} if self.license_files else {CHECKSUM, "license_files"}
        return self.model_dump(mode="json", exclude=absent)


def _to_text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path, *, through: Path | None = None) -> Manifest:
    """Read and validate ``folder/bundle.json``; reads no other file.

    Args:
        through: path of the open folder; ``folder`` then only names it in messages.

    Raises:
        BundleError: the bundle is missing, has another schema version, has an invalid entry, or was changed.
    """
    path = folder / MANIFEST
    try:
        return parse_manifest(_read(path, (through or folder) / MANIFEST), str(path))
    except FileNotFoundError:
        problem = "has no bundle.json" if os.path.isdir(folder) else "does not exist"
        raise BundleError(
            f"{folder} {problem}: build a bundle with 'sd2rt build CHECKPOINT -o {folder}'"
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{folder} is not a folder: use the folder or the name of a bundle") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Parse and validate the text of a ``bundle.json``; ``path`` names it in messages.

    Raises:
        BundleError: it has another schema version, has an invalid entry, or was changed.
    """
    try:
        data: Any = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}): build the bundle again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r}, this sd2rt reads {SCHEMA_VERSION}: build the bundle again"
        )
    try:
        # Strict JSON mode: a number in a string is as wrong as an unknown key.
        manifest = Manifest.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(str(item) for item in first["loc"])) or "the manifest"
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = "unknown key"
        raise BundleError(f"{path}: {where}: {reason}: build the bundle again") from None
    if manifest.checksum is not None and manifest.checksum != checksum(data):
        raise BundleError(
            f"{path} was changed after it was written (its checksum does not match): copy or build the bundle again"
        )
    # A manifest that was read equals the one that was written.
    return manifest.model_copy(update={CHECKSUM: None})


def _read(path: Path, opened: Path) -> bytes:
    status = opened.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise BundleError(
            f"{path} is a symbolic link: bundles have regular files only, copy it with 'cp -rL'"
        )
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a regular file: build the bundle again")
    if status.st_size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path} has {status.st_size} bytes, the limit for a manifest is {MAX_MANIFEST_BYTES}: "
            "build the bundle again"
        )
    return read_regular(opened, MAX_MANIFEST_BYTES)
