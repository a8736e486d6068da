"""The default bundle: the demo, built at its first use."""

from __future__ import annotations

import os
from pathlib import Path

from sd2rt.engines.bundle.cache import named_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.console import report

DEMO = "demo"


def bundle_or_demo(name: str | None, quiet: bool) -> str | Path:
    """Return the named bundle, or else the demo, building it if it is missing.

    Raises:
        BuildError: another process is building it, or the disk is full.
        CheckpointError: the package lacks files of the demo, or they are damaged.
    """
    if name is not None:
        return name
    demo = named_bundle(DEMO)
    if not os.path.isfile(demo / MANIFEST):
        from sd2rt.engines.demo.build import build_demo

        if not quiet:
            report("building the demo bundle, once")
        # A demo bundle of another version in the cache is replaced without asking, as `sd2rt build` does.
        build_demo(DEMO, demo, replace=True)
    return demo
