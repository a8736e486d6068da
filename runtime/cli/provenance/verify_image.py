"""`sd2rt verify-image`: the marks of generated pictures in image files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sd2rt.engines.console import report
from sd2rt.engines.errors import RequestError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.printable import printable, shown

if TYPE_CHECKING:
    from sd2rt.runtime.metadata.recipe import Recipe
    from sd2rt.runtime.provenance.reading import Marks


def verify_image(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="PNG, JPEG, WebP, AVIF or TIFF files.")
    ],
    c2pa_trust: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="Certificates of authorities that are trusted to vouch for signers.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each file.")] = False,
) -> None:
    """Show the marks in image files: settings, XMP's digital source type, the watermark sdv2, a C2PA signature.

    Exit code 0: each file is marked as generated, by XMP, watermark or an intact signature. 2: one is not, was
    altered after it was signed, or cannot be read.
    """
    from sd2rt.runtime.provenance.reading import read_marks

    authorities = None
    if c2pa_trust is not None:
        from sd2rt.runtime.provenance.c2pa import read_authorities

        authorities = read_authorities(c2pa_trust)
    problems: list[str] = []
    for file in files:
        try:
            marks = read_marks(file, authorities)
        except RequestError as error:
            problems.append(str(error))
            continue
        recipe = _recipe_in(marks)
        if as_json:
            print(json.dumps(_facts(file, marks, recipe)), flush=True)
        else:
            print("\n  ".join([printable(file), *_lines(marks, recipe)]), flush=True)
        if marks.altered:
            problems.append(f"{marks.name} was altered after it was signed, or its signature is invalid")
        elif not marks.generated:
            problems.append(f"{marks.name} has no mark of a generated picture")
    if problems:
        *others, last = problems
        for problem in others:
            report(f"error: {problem}")
        raise RequestError(last)


def _recipe_in(marks: Marks) -> Recipe | None:
    from sd2rt.runtime.metadata.recipe import recipe_of

    try:
        return recipe_of(marks.name, marks.texts)
    except RequestError:
        return None


def _facts(file: str, marks: Marks, recipe: Recipe | None) -> dict[str, Any]:
    from dataclasses import asdict

    from sd2rt.runtime.provenance.c2pa import Manifest

    settings = None
    if recipe is not None:
        settings = {"program": recipe.program or "sd2rt", "bundle": recipe.bundle, **recipe.fields}
    manifest = marks.manifest
    c2pa = asdict(manifest) if isinstance(manifest, Manifest) else {"state": manifest or "none"}
    return {
        "path": file,
        "generated": marks.generated,
        "settings": settings,
        "digital_source_type": marks.source_type,
        "watermark": "sdv2" if marks.watermarked else None,
        "c2pa": c2pa,
    }


def _lines(marks: Marks, recipe: Recipe | None) -> list[str]:
    from sd2rt.runtime.provenance.c2pa import Manifest

    settings = "none"
    if recipe is not None:
        fields = {"bundle": recipe.bundle, **recipe.fields}
        named = ", ".join(
            f"{name} {shown(str(value))}" for name, value in fields.items() if value is not None
        )
        settings = f"{shown(recipe.program or 'sd2rt')}: {named}"
    manifest = marks.manifest
    if manifest == "unchecked":
        signature = f"not checked: {install_hint('c2pa')}"
    elif isinstance(manifest, Manifest):
        signature = _described(manifest)
    else:
        signature = "none"
    return [
        f"settings: {settings}",
        f"digital source type: {shown(marks.source_type or 'none')}",
        f"watermark: {'sdv2' if marks.watermarked else 'none'}",
        f"C2PA: {signature}",
    ]


def _described(manifest: Any) -> str:
    words = {
        "trusted": "valid, by a trusted signer",
        "valid": "valid, by a signer that is not trusted",
        "invalid": "INVALID",
    }
    parts = [words[manifest.state]]
    if manifest.signer is not None:
        parts.append(shown(manifest.signer, 200))
    if manifest.source_type is not None:
        parts.append(shown(manifest.source_type))
    return "; ".join([*parts, *map(shown, manifest.problems)])
