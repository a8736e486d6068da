"""Options of `sd2rt run` for its files and lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from sd2rt.engines.option_groups import OptionGroup
from sd2rt.runtime.images.formats import FileFormat

Quality = Annotated[int | None, typer.Option(min=0, max=100, help="Quality of JPEG and WebP; default: 90.")]

SafetyCheck = Annotated[
    str | None,
    typer.Option(
        metavar="CHECK",
        help="Refuse images that a check flags: opennsfw, or module:function of your own. Off by default.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class OutputOptions(OptionGroup):
    """Files to write, and lines to print."""

    panel: ClassVar[str] = "Output"

    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A .png, .jpg or .webp file, a folder for files named by seed, or - for standard output.",
        ),
    ] = Path(".")
    file_format: Annotated[
        FileFormat | None,
        typer.Option(
            "--format",
            "--output-format",
            help="File format; default: by the file's name, png in a folder.",
            show_default=False,
        ),
    ] = None
    quality: Quality = None
    safety: SafetyCheck = None
    preview: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|kitty|none",
            help="Show rough images while they are made: as files in a folder, or in a terminal that draws images.",
        ),
    ] = None
    save_depth: Annotated[
        Path | None, typer.Option(help="depth: also write the depth map, as a 16-bit gray PNG.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line for each image.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False
