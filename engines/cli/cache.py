"""`sd2rt cache`: show the contents of the cache directory, and remove what nothing can use."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.cli.options import JsonOption
from sd2rt.engines.console import add_row, report, table_console
from sd2rt.engines.printable import printable


def cache(
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="First remove graphs, receipts, prepared graphs and unfinished builds that nothing can use.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the cache directory: what lies where, and how many bytes are shared."""
    from sd2rt.engines.cli.cache_usage import places
    from sd2rt.engines.cli.cache_usage import prune as prune_cache

    root = cache_dir()
    removed = prune_cache() if prune else None
    found = places()
    if as_json:
        facts = {"path": str(root), "places": [asdict(place) for place in found]}
        print(json.dumps(facts if removed is None else {**facts, "removed": removed}))
        return
    from rich.table import Table

    if removed is not None:
        counts = ", ".join(f"{number} {kind}" for kind, number in removed.items() if number)
        report(f"note: removed {counts or 'nothing'}")
    console = table_console(100)
    console.print(printable(root), soft_wrap=True)
    table = Table("place", "contents", "files", "own MB", "shared MB", box=None, padding=(0, 2, 0, 0))
    for place in found:
        sizes = (f"{size / 1e6:.1f}" for size in (place.own_bytes, place.shared_bytes))
        add_row(table, place.name, place.purpose, place.files, *sizes)
    shared = max((place.shared_bytes for place in found if place.name == "objects"), default=0)
    total = sum(place.own_bytes for place in found) + shared
    files = sum(place.files for place in found)
    add_row(table, "total", "each shared file counted once", files, f"{total / 1e6:.1f}", "")
    console.print(table)
