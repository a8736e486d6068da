"""`sd2rt push`: upload a bundle to the Hugging Face Hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sd2rt.engines.cli.options import BundleArgument
from sd2rt.engines.console import report


def push(
    bundle: BundleArgument,
    repository: Annotated[
        str,
        typer.Argument(
            metavar="USER/NAME[@BRANCH]",
            help="Repository on the Hub; it and the branch are created if missing.",
        ),
    ],
    engines: Annotated[bool, typer.Option("--engines", help="Upload compiled engines too.")] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make a repository that is created a private one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False,
) -> None:
    """Upload a bundle to the Hugging Face Hub, with a model card. The same command resumes."""
    from sd2rt.engines.hub.card import CARD
    from sd2rt.engines.hub.push import push as upload
    from sd2rt.engines.hub.repository import parse_repository

    parsed = parse_repository(repository)
    bars = not quiet and sys.stderr.isatty()
    url, kept = upload(bundle, parsed, engines=engines, private=private, bars=bars)
    if kept and not quiet:
        report(f"note: {parsed.id} has a {CARD} of its own, which was kept")
    print(url)
