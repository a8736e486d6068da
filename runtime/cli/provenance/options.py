"""Options for the marks in generated files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from sd2rt.engines.option_groups import OptionGroup

if TYPE_CHECKING:
    from sd2rt.runtime.provenance.stamps import Stamps

WatermarkName = Literal["sdv2", "none"]
NoMetadata = Annotated[
    bool,
    typer.Option(
        "--no-metadata", help="Write neither settings nor XMP's digital source type into the files."
    ),
]
Certificate = Annotated[
    str | None,
    typer.Option(
        metavar="PEM", help="Certificate chain to sign files with (C2PA); extra: c2pa.", show_default=False
    ),
]
PrivateKey = Annotated[
    str | None,
    typer.Option(metavar="PEM", help="Private key of --c2pa-cert, without a passphrase.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class StampOptions(OptionGroup):
    """Marks of files: settings, digital source type, watermark, signature."""

    panel: ClassVar[str] = "Provenance"

    no_metadata: NoMetadata = False
    watermark: Annotated[
        WatermarkName,
        typer.Option(
            help="sdv2: the reference Stable Diffusion 2's invisible watermark, from 256x256 pixels on."
        ),
    ] = "none"
    c2pa_cert: Certificate = None
    c2pa_key: PrivateKey = None

    def stamps(self) -> Stamps:
        """Return the marks.

        Raises:
            RequestError: the options contradict each other, or certificate and key cannot sign.
            MissingDependencyError: files are to be signed, and c2pa-python is not installed.
        """
        from sd2rt.runtime.provenance.stamps import Stamps

        return Stamps.of(**self.values())

    def values(self) -> dict[str, Any]:
        """Return the arguments of :meth:`sd2rt.runtime.provenance.stamps.Stamps.of`."""
        return {
            "metadata": not self.no_metadata,
            "watermark": self.watermark,
            "c2pa_cert": self.c2pa_cert,
            "c2pa_key": self.c2pa_key,
        }
