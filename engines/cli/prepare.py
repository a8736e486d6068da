"""`sd2rt prepare`: cache graphs that ONNX Runtime has optimised for this CPU."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.cli.options import BundleArgument
from sd2rt.engines.console import print_line


def prepare(
    bundle: BundleArgument,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Part to prepare, by default all; may be repeated."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the bundle's prepared graphs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line for each part.")] = False,
) -> None:
    """Save a bundle's graphs as optimised by ONNX Runtime for this CPU, so that it opens in a fifth of the time.

    They take as much disk space as the bundle, in the cache directory. Processes that open them share their memory.
    """
    from sd2rt.engines.onnxruntime import prepared

    if remove:
        freed = prepared.remove(bundle)
        print(json.dumps({"freed_bytes": freed}) if as_json else f"{freed / 1e6:.1f} MB removed")
        return

    def report(name: PartName) -> None:
        if not as_json:
            print_line(f"{name} ...")

    for graph in prepared.prepare(bundle, parts=tuple(part or ()), progress=report):
        if as_json:
            facts = {"part": graph.part, "path": str(graph.path), "bytes": graph.bytes, "made": graph.made}
            print(json.dumps(facts))
        else:
            print(f"{graph.part}: {graph.bytes / 1e6:.1f} MB{'' if graph.made else ', already prepared'}")
