"""Parse the values of command-line options that rows do not have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.rows.option_text import numbers

if TYPE_CHECKING:
    from sd2rt.engines.bundle.schema import ComputePrecision, Precision


def one_or_more(option: str, text: str | None) -> float | tuple[float, ...] | None:
    """Parse a number, or several separated by commas; None if the option was not given."""
    values = numbers(option, text)
    return values[0] if values is not None and len(values) == 1 else values


def precision(
    name: ComputePrecision | Precision | None, bundle: str | os.PathLike[str]
) -> ComputePrecision | None:
    """Return the precision to open a bundle with; the bundle's own is no change.

    Raises:
        RequestError: it is one that bundles are built in, and not this one's.
    """
    if name is None or name == "bf16" or name == "bf16-decoder":
        return name
    from sd2rt.engines.bundle.manifest import read_manifest
    from sd2rt.engines.bundle.reader import locate

    manifest = read_manifest(locate(bundle))
    if manifest.precision == name:
        return None
    raise RequestError(
        f"--precision {name} is chosen when a bundle is built, and {manifest.name} is {manifest.precision}: "
        f"build one with 'sd2rt build {manifest.source.name} --precision {name} -o {manifest.name}-{name}', "
        f"then run {manifest.name}-{name}"
    )
