"""Arguments and options shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="Bundle: a folder, or a name in the cache.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
