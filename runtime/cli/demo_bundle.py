"""Demo bundles, built at their first use; the demo is the default bundle."""

from __future__ import annotations

import os
from pathlib import Path

from sd2rt.engines.bundle.cache import find_bundle, named_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.console import report
from sd2rt.engines.demo.files import DEMO_NAMES

DEMO = "demo"


def bundle_or_demo(name: str | None, quiet: bool) -> str | Path:
    """Return the named bundle, the demo if none is named; builds a demo that is missing or outdated.

    Raises:
        BuildError: another process is building it, or the disk is full.
        CheckpointError: the package lacks files of the demo, or they are damaged.
    """
    if name is None:
        name, path = DEMO, named_bundle(DEMO)
    elif name not in DEMO_NAMES or (path := find_bundle(name)) != named_bundle(name):
        return name
    from sd2rt.engines.demo.build import build_demo, outdated

    # An outdated demo keeps the precision and sizes that it was built with.
    options = outdated(name, path) if os.path.isfile(path / MANIFEST) else {}
    if options is not None:
        if not quiet:
            report(f"building the {name} bundle, once")
        # A demo of another version in the cache is replaced without asking, as `sd2rt build` does.
        build_demo(name, path, replace=True, **options)
    return path
