"""The default bundle: the demo, built at its first use."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from sd2rt.engines.bundle.cache import named_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.console import report
from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.termination import end_child

DEMO = "demo"


def bundle_or_demo(name: str | None, quiet: bool) -> str | Path:
    """Return the named bundle, or else the demo, building it if it is missing.

    Raises:
        MissingDependencyError: the demo is missing and PyTorch, which builds it, is not installed.
        typer.Exit: the build failed, with its exit code.
    """
    if name is not None:
        return name
    demo = named_bundle(DEMO)
    if not os.path.isfile(demo / MANIFEST):
        if find_spec("torch") is None:
            raise MissingDependencyError(
                "no bundle was named, and the demo bundle is not built yet: pip install 'sd2rt[export]' and run "
                "'sd2rt build demo', or name a bundle"
            )
        if not quiet:
            report("building the demo bundle, once")
        code = _build_demo()
        if code != 0:
            # The build has printed its error already.
            raise typer.Exit(code)
    return demo


def _build_demo() -> int:
    """Build in a child process, which keeps this one free of torch, and return its exit code."""
    child = subprocess.Popen(
        # Without -P the working directory would come before the installed packages.
        [sys.executable, "-P", "-m", "sd2rt", "build", DEMO],
        stdout=subprocess.DEVNULL,
    )
    try:
        return child.wait()
    except KeyboardInterrupt:
        end_child(child, grace_seconds=None)
        raise
