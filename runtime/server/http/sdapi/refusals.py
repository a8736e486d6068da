"""Fields of AUTOMATIC1111's that ask for something that is not done here: each refusal names its field."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.printable import shown
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.sdapi.bodies import GenerationBody, Img2ImgBody, UpscalingBody

_NONE = (None, "", "None", "none")


def not_supported(field: str, reason: str) -> ServerError:
    """Make the error of a field that asks for something that is not done here."""
    return ServerError("not_supported", f"{field} is not supported: {reason}", param=field)


def refuse_generation(body: GenerationBody) -> None:
    """Check that a request asks for nothing that is not done.

    Raises:
        ServerError: ``not_supported``.
    """
    wanted = {
        "enable_hr": (getattr(body, "enable_hr", None), "generate, then use extra-single-image"),
        "restore_faces": (body.restore_faces, "leave it out"),
        "tiling": (body.tiling, "leave it out"),
        "styles": (body.styles, "write them into the prompt"),
        "disable_extra_networks": (body.disable_extra_networks, "leave the <lora:...> tags out"),
        "controlnet_units": (body.controlnet_units, "ControlNet is not done here"),
        "subseed_strength": (body.subseed_strength, "use 0"),
        "s_min_uncond": (body.s_min_uncond, "use 0"),
    }
    for field, (value, remedy) in wanted.items():
        if value:
            raise not_supported(field, remedy)
    for field in ("seed_resize_from_h", "seed_resize_from_w"):
        if (getattr(body, field) or 0) > 0:
            raise not_supported(field, "use 0")
    if body.refiner_checkpoint not in _NONE:
        raise not_supported("refiner_checkpoint", "leave it out")
    if body.infotext not in _NONE:
        raise not_supported("infotext", "send its settings as fields")
    if body.script_name not in _NONE:
        raise ServerError(
            "not_supported",
            f"there is no script named {shown(body.script_name or '')!r}: this server runs none",
            param="script_name",
        )
    for name, script in (body.alwayson_scripts or {}).items():
        if not _idle(script):
            raise ServerError(
                "not_supported",
                f"there is no always-on script named {shown(name)!r}: this server runs none",
                param="alwayson_scripts",
            )


def refuse_img2img(body: Img2ImgBody) -> None:
    """Check what only image-to-image has.

    Raises:
        ServerError: ``not_supported``.
    """
    if body.resize_mode == 3:
        raise not_supported("resize_mode 3", "use 0, 1 or 2")
    if body.inpainting_fill in (2, 3) and body.mask:
        raise not_supported(f"inpainting_fill {body.inpainting_fill}", "use 0 or 1")
    if body.initial_noise_multiplier not in (None, 1):
        raise not_supported("initial_noise_multiplier", "use 1")
    if body.latent_mask:
        raise not_supported("latent_mask", "send a mask")
    if body.mask and body.mask_round is False:
        raise not_supported("mask_round false", "masks are either repainted or kept")


def refuse_upscaling(body: UpscalingBody) -> None:
    """Check what is not done with larger images.

    Raises:
        ServerError: ``not_supported``.
    """
    for field in ("gfpgan_visibility", "codeformer_visibility"):
        if getattr(body, field):
            raise not_supported(field, "faces are not restored here, use 0")
    if body.extras_upscaler_2_visibility:
        raise not_supported("extras_upscaler_2_visibility", "use upscaler_1 alone")


def _idle(script: Any) -> bool:
    """Return whether an always-on script has nothing to do: no arguments, or all of them off or null."""
    arguments = script.get("args", []) if isinstance(script, dict) else None
    return isinstance(arguments, list) and all(each is False or each is None for each in arguments)
