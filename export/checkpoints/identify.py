"""Identify a published checkpoint from evidence, which may be partial but must be consistent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.variants import SUPPORTED, VARIANTS, PublishedCheckpoint, find_variant


@dataclass(frozen=True, slots=True)
class Evidence:
    """An observation about a checkpoint, and the rows of the table that are consistent with it."""

    observation: str
    rows: tuple[PublishedCheckpoint, ...]
    remedy: str = "get the checkpoint again"
    """Remedy for the error when the observation contradicts the others."""


def narrow(origin: str, evidence: Sequence[Evidence]) -> tuple[PublishedCheckpoint, ...]:
    """Supported rows that are consistent with all evidence, in the table's order; all of them without evidence.

    Raises:
        CheckpointError: two observations contradict each other, or no remaining row is supported.
    """
    remaining = VARIANTS
    for number, observed in enumerate(evidence):
        if not observed.rows:
            raise CheckpointError(
                f"{origin} is not a Stable Diffusion 2 checkpoint ({observed.observation}): this version "
                f"builds {_names(SUPPORTED)}"
            )
        both = tuple(row for row in remaining if row in observed.rows)
        if not both:
            against = [e for e in evidence[:number] if any(row not in e.rows for row in observed.rows)]
            raise CheckpointError(
                f"{origin}: {observed.observation} means {_names(observed.rows)}, but "
                f"{' and '.join(e.observation for e in against)} means {_names(remaining)}: {observed.remedy}"
            )
        remaining = both
    supported = tuple(row for row in remaining if row.supported)
    if not supported:
        facts = "; ".join(e.observation for e in evidence)
        raise CheckpointError(f"{origin} is {not_supported(remaining, facts)}")
    return supported


def not_supported(rows: Sequence[PublishedCheckpoint], facts: str) -> str:
    """Predicate of the error message for a known but unsupported checkpoint."""
    return (
        f"Stable Diffusion 2's {_names(rows)} ({facts}), which this version does not support yet: "
        f"it builds {_names(SUPPORTED)}"
    )


def stated(variant: str | None) -> list[Evidence]:
    """Evidence from ``--variant``.

    Raises:
        CheckpointError: the variant is unknown or not supported.
    """
    if variant is None:
        return []
    row = find_variant(variant)
    if not row.supported:
        raise CheckpointError(f"--variant {variant} is {not_supported([row], 'as asked for')}")
    return [Evidence(f"--variant {variant}", (row,), "leave --variant out, or give the right one")]


def by_hash(digest: str) -> list[Evidence]:
    """Evidence from a weights file's SHA-256, if it is a published one."""
    rows = tuple(row for row in VARIANTS if digest in row.files or digest in row.unet_files)
    return [Evidence(f"its SHA-256 {digest[:12]}...", rows)] if rows else []


def by_architecture(in_channels: object, class_embedding: str | None) -> list[Evidence]:
    """Evidence from the UNet's inputs."""
    rows = tuple(row for row in VARIANTS if row.has_unet(in_channels, class_embedding))
    observation = f"its UNet's {in_channels} input channels" + (
        f" and class embedding ({class_embedding})" if class_embedding is not None else ""
    )
    return [Evidence(observation, rows)]


def by_prediction(prediction_type: object, where: str) -> list[Evidence]:
    """Evidence from a scheduler configuration's prediction type."""
    rows = tuple(row for row in VARIANTS if prediction_type in row.predictions)
    return [Evidence(f"prediction_type {prediction_type} in {where}", rows, f"give it the right {where}")]


def likeliest(rows: Sequence[PublishedCheckpoint]) -> tuple[PublishedCheckpoint, ...]:
    """Drop rows that only a name can identify, unless no others remain.

    SD-Turbo's weights and configuration have the same form as those of 2.1-base: without a name, a checkpoint is
    taken for a base model.
    """
    return tuple(row for row in rows if not row.by_name_only) or tuple(rows)


def _names(rows: Sequence[PublishedCheckpoint]) -> str:
    shown = [row for row in rows if row.supported] or rows
    return " or ".join(row.name for row in shown)
