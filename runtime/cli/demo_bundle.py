"""The bundle that is taken where none is named: the demo, built where it is missing."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from sd2rt.engines.bundle.cache import named_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.errors import MissingDependencyError

DEMO = "demo"


def bundle_or_demo(name: str | None, quiet: bool) -> str | Path:
    """The bundle that was named, or the demo, which is built where it is missing and can be."""
    if name is not None:
        return name
    demo = named_bundle(DEMO)
    if not (demo / MANIFEST).is_file():
        if find_spec("torch") is None:
            raise MissingDependencyError(
                "no bundle was named and the demo is not built: pip install 'sd2rt[export]' and run "
                "'sd2rt build demo', or name a bundle"
            )
        if not quiet:
            print("sd2rt: building the demo bundle, once", file=sys.stderr)
        code = _build_demo()
        if code != 0:
            # What was wrong stands on standard error already, in the words of the build.
            raise typer.Exit(code)
    return demo


def _build_demo() -> int:
    """Build in a process of its own, so that this one stays free of torch, and return its exit code."""
    child = subprocess.Popen(
        # Without -P the working directory would come before what is installed.
        [sys.executable, "-P", "-m", "sd2rt", "build", DEMO],
        stdout=subprocess.DEVNULL,
    )
    try:
        return child.wait()
    except KeyboardInterrupt:
        try:
            # A terminal tells both of them; the child has things to put in order.
            child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            child.wait()
        raise
