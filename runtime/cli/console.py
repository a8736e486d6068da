"""What is warned of, as commands say it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def shown_warnings(quiet: bool) -> Iterator[None]:
    """Warnings as a line each on standard error, or not at all."""

    shown: set[str] = set()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        line = " ".join(str(message).splitlines())
        # Many images of one request say the same thing.
        if line not in shown:
            shown.add(line)
            print(f"sd2rt: warning: {line}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always")
        warnings.showwarning = show
        yield
