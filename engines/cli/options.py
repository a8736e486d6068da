"""Arguments and options shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

from sd2rt.engines.bundle.cache import complete_bundle

BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE",
        help="Bundle: a folder, or a name in the cache.",
        autocompletion=complete_bundle,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
