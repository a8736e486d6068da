"""Facts that all actors of a job share: the bundle's identity, defaults of rows, marks, settings of hashes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.reader import locate
from sd2rt.engines.bundle.sizes import TILE
from sd2rt.engines.errors import EngineError
from sd2rt.engines.lora.file import Lora, named_loras
from sd2rt.runtime.metadata.save import ImageTarget
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.prompts.textual_inversion import Embedding, check_embedding
from sd2rt.runtime.provenance.safety import load_safety
from sd2rt.runtime.provenance.stamps import Stamps
from sd2rt.runtime.ray.config import ProcessorConfig
from sd2rt.runtime.rows.identity import row_settings
from sd2rt.runtime.rows.lora_tags import LoraFolder
from sd2rt.runtime.rows.option_text import embedding, sampler_and_schedule
from sd2rt.runtime.rows.row import PATHS, row_of
from sd2rt.runtime.rows.series import Series


@dataclass(frozen=True, slots=True)
class Job:
    """A checked configuration; it is sent to the actors as it is."""

    config: ProcessorConfig
    identity: str
    """Of the bundle, which actors compare with the one that they open."""
    fields: Mapping[str, Any]
    """Fields of rows without their own."""
    count: int
    """Images of rows without a number of their own."""
    seed: int | None
    """Seed of the first image; None for a seed of its own for each row."""
    target: ImageTarget
    """Format and marks of images; its folder is not used."""
    settings: Mapping[str, Any]
    """All that rows' hashes cover."""
    lora_dir: str | None = None
    named_loras: tuple[str, ...] = ()
    """LoRAs of ``lora_dir`` that all prompts name, as words like the configuration's."""

    @classmethod
    def of(cls, config: ProcessorConfig) -> Self:
        """Check a configuration: read the bundle's manifest and the files that it names.

        Raises:
            RequestError: an option or a file is wrong.
            BundleError: there is no such bundle, or it is damaged.
            MissingDependencyError: an extra of a mark or check is not installed.
        """
        row = row_of({"prompt": "", **config.options}, 0)
        fields = dict(row.fields)
        grid = fields.get("grid", "diffusers")
        fields |= sampler_and_schedule(fields.get("sampler"), fields.get("schedule"), grid)
        return cls.with_fields(config, fields, 1 if row.count is None else row.count, row.seed)

    @classmethod
    def with_fields(
        cls,
        config: ProcessorConfig,
        fields: Mapping[str, Any],
        count: int,
        seed: int | None,
        lora_dir: str | None = None,
        named: tuple[str, ...] = (),
    ) -> Self:
        """Like :meth:`of`, with fields of requests instead of the configuration's options."""
        config = _absolute(config)
        manifest = read_manifest(locate(config.bundle))
        stamps = Stamps.of(
            metadata=config.metadata,
            watermark=config.watermark,
            c2pa_cert=config.c2pa_cert,
            c2pa_key=config.c2pa_key,
        )
        target = ImageTarget.of(".", config.file_format, config.quality, stamps=stamps)
        if config.safety is not None:
            load_safety(config.safety)
        named = tuple(map(_absolute_file, named))
        loras, embeddings = _adapters(config, named)
        for each in embeddings:
            check_embedding(each, manifest)
        settings = row_settings(
            fields,
            count,
            manifest,
            loras=loras,
            embeddings=embeddings,
            tile=TILE if config.tile is None else config.tile,
            precision=config.precision,
            target=target,
            stamps=stamps,
            safety=config.safety,
        )
        folder = None if lora_dir is None else os.path.abspath(lora_dir)
        fields = with_absolute_paths(fields)
        return cls(config, manifest.identity, fields, count, seed, target, settings, folder, named)

    def series(self, seed: int | None) -> Series:
        """Return requests of rows, with this job's fields where a row has none of its own."""
        folder = None if self.lora_dir is None else LoraFolder(self.lora_dir)
        series = Series(dict(self.fields), self.count, seed, folder)
        if folder is not None:
            series.named_loras = self.named_loras
        return series

    def open(self) -> Pipeline:
        """Open the bundle on this machine.

        Raises:
            EngineError: it is another bundle than the one that the job was made for, or the device failed.
            BundleError: it is missing here, or damaged.
        """
        config = self.config
        loras, embeddings = _adapters(config, self.named_loras)
        pipeline = Pipeline.open(
            config.bundle,
            device=config.device,
            backend=config.backend,
            precision=config.precision,
            threads=config.actor_threads(),
            max_batch=config.max_batch,
            tile=TILE if config.tile is None else config.tile,
            allow_cpu_fallback=config.allow_cpu_fallback,
            loras=loras,
            safety=config.safety,
        )
        if pipeline.manifest.identity != self.identity:
            pipeline.close()
            raise EngineError(
                f"{config.bundle} on {os.uname().nodename} is another bundle than the job's: copy the same one to "
                "every machine, or share its folder"
            )
        for each in embeddings:
            pipeline.add_embedding(each)
        return pipeline


def _adapters(config: ProcessorConfig, named: tuple[str, ...]) -> tuple[list[Lora], list[Embedding]]:
    loras = named_loras([*config.loras, *named], allow_pickle=config.allow_pickle)
    return loras, [embedding(text, config.allow_pickle) for text in config.embeddings]


def _absolute(config: ProcessorConfig) -> ProcessorConfig:
    """Make paths absolute: the working directory of actors may be another."""
    return config.model_copy(
        update={
            "bundle": _absolute_file(config.bundle),
            "loras": tuple(map(_absolute_file, config.loras)),
            "embeddings": tuple(
                "=".join((*token, _absolute_file(path)))
                for *token, path in (text.split("=", 1) for text in config.embeddings)
            ),
        }
    )


def with_absolute_paths(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Make the paths in fields of a row absolute, as they are in this process's working directory."""
    return {
        name: os.path.abspath(value) if name in PATHS and isinstance(value, str) else value
        for name, value in fields.items()
    }


def _absolute_file(word: str) -> str:
    """Make the path that a word begins with absolute; names of the cache stay as they are."""
    path, colon, scales = word.partition(":")
    if os.path.exists(word):
        return os.path.abspath(word)
    return f"{os.path.abspath(path)}{colon}{scales}" if os.path.exists(path) else word
