"""The command that installs an extra of sd2rt, which no package index has yet: from a checkout, or from a wheel."""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = Path(os.path.realpath(__file__)).parents[1]


def install_hint(*extras: str) -> str:
    """Return the command that installs extras: in the checkout that sd2rt runs from, else from its wheel."""
    names = ",".join(extras)
    if os.path.isfile(_CHECKOUT / "pyproject.toml"):
        return f"pip install '.[{names}]' in sd2rt's checkout"
    from importlib.metadata import version

    return f"pip install 'sd2rt-{version('sd2rt')}-py3-none-any.whl[{names}]'"
