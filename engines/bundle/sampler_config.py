"""Noise schedule and sampler configuration, written to the manifest by export and read by the samplers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

STATE_SLOTS = 5
"""Latents in a sample's state: the one being denoised, plus K of the sampler's history."""

MAX_TIMESTEPS = 1_000_000
"""Limit of a noise schedule's timesteps, of which tables are made; SD2's have 1000."""

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]
Levels = Literal["spaced", "karras", "exponential", "beta", "lambdas", "ays"]
SamplerName = Literal[
    "ddim",
    "ddpm",
    "pndm",
    "lms",
    "euler",
    "euler-a",
    "heun",
    "restart",
    "dpm2",
    "dpm2-a",
    "dpmpp-2s",
    "dpmpp-2s-a",
    "dpmpp-2m",
    "dpmpp-2m-sde",
    "dpmpp-3m-sde",
    "dpmpp-sde",
    "dpm-fast",
    "deis",
    "unipc",
    "ipndm",
    "sa-solver",
    "lcm",
    "tcd",
]


_Level = Annotated[float, Field(ge=1e-8, le=1e8)]
"""A noise level other than 0. Samplers raise levels to the fourth power, and PyTorch computes with float32."""
_Amount = Annotated[float, Field(ge=0, le=1e6)]
_Count = Annotated[int, Field(ge=0, le=MAX_TIMESTEPS)]


class NoiseConfig(BaseModel):
    """Forward diffusion process that a checkpoint was trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_train_timesteps: int = Field(ge=1, le=MAX_TIMESTEPS)
    beta_start: float = Field(ge=1e-8, lt=1)
    beta_end: float = Field(ge=1e-8, lt=1)
    beta_schedule: Literal["linear", "scaled_linear"]
    prediction_type: PredictionType
    rescale_betas_zero_snr: bool = False
    """Rescale betas so that the last timestep is pure noise: algorithm 1 of arXiv:2305.08891."""


class SamplerConfig(BaseModel):
    """A sampler with the options that determine its coefficients.

    Options have the names and meanings of diffusers' schedulers. Options that a sampler does not have (see
    SAMPLER_OPTIONS) keep the defaults of this class and have no effect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SamplerName
    spacing: Spacing = "linspace"
    """Spacing of the integer timesteps."""
    levels: Levels = "spaced"
    """Choice of noise levels: those of the spaced timesteps, or a schedule of their own."""
    steps_offset: int = Field(default=0, ge=0, le=MAX_TIMESTEPS)
    """Timestep of the last step, with ``leading`` spacing."""
    set_alpha_to_one: bool = False
    """The last step ends without noise, rather than at the noise level of timestep 0."""
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    """Noise level at the end of the last step."""
    solver_order: int = Field(default=1, ge=1, le=4)
    corrector_order: int = Field(default=1, ge=1, le=3)
    solver_type: Literal["", "midpoint", "heun", "bh1", "bh2"] = ""
    algorithm_type: Literal["", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"] = ""
    predict_x0: bool = True
    """Extrapolate predictions of the clean image, rather than of the noise."""
    lower_order_final: bool = False
    """Lower the order of the last steps when there are few steps."""
    euler_at_final: bool = False
    disable_corrector: Annotated[tuple[_Count, ...], Field(max_length=100_000)] = ()
    """Indices of steps, from 0, after which the corrector does not run."""
    skip_prk_steps: bool = True
    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    sigma_min: _Level | None = None
    sigma_max: _Level | None = None
    """Range of the karras, exponential and beta noise levels; None for that of the schedule."""
    lambda_min_clipped: float | None = Field(default=None, allow_inf_nan=False)
    """Skip timesteps with log(alpha / sigma) below this."""
    s_churn: _Amount = 0.0
    s_tmin: _Amount = 0.0
    s_tmax: _Amount | None = None
    s_noise: _Amount = 1.0
    tau: _Amount = 0.0
    tau_start: _Amount = 0.0
    tau_end: _Amount = 0.0
    """sa-solver adds fresh noise in proportion to tau, at the timesteps from tau_start to tau_end."""
    original_inference_steps: int = Field(default=1, ge=1, le=MAX_TIMESTEPS)
    timestep_scaling: float = Field(default=1.0, ge=1e-6, le=1e6)

    @model_validator(mode="after")
    def _choices(self) -> SamplerConfig:
        for option, allowed in CHOICES.get(self.name, {}).items():
            value = getattr(self, option)
            if value not in allowed:
                choices = ", ".join(str(choice) for choice in allowed)
                raise ValueError(f"{option} of {self.name} is {value}: choose one of {choices}")
        return self


_MULTISTEP = {
    "spacing": "linspace",
    "levels": "spaced",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": None,
}
_LEVELS = {"spacing": "linspace", "levels": "spaced"}

SAMPLER_OPTIONS: dict[SamplerName, dict[str, Any]] = {
    "ddim": {"spacing": "leading", "levels": "spaced", "set_alpha_to_one": False},
    "ddpm": {"spacing": "leading", "levels": "spaced", "variance_type": "fixed_small"},
    "pndm": {"spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": True},
    "lms": {**_LEVELS, "solver_order": 4},
    "euler": {
        **_LEVELS,
        "final_sigmas_type": "zero",
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "s_churn": 0.0,
        "s_tmin": 0.0,
        "s_tmax": None,
        "s_noise": 1.0,
    },
    "euler-a": _LEVELS,
    "heun": _LEVELS,
    "restart": _LEVELS,
    "dpm2": _LEVELS,
    "dpm2-a": _LEVELS,
    "dpmpp-2s": {
        "levels": "spaced",
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": None,
    },
    "dpmpp-2s-a": _LEVELS,
    "dpmpp-2m": {**_MULTISTEP, "algorithm_type": "dpmsolver++"},
    "dpmpp-2m-sde": {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"},
    "dpmpp-3m-sde": _LEVELS,
    "dpmpp-sde": {**_LEVELS, "s_noise": 1.0},
    "dpm-fast": _LEVELS,
    "deis": {**_LEVELS, "solver_order": 2, "lower_order_final": True},
    "unipc": {
        **_LEVELS,
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "disable_corrector": (),
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
    },
    "ipndm": {**_LEVELS, "solver_order": 4, "final_sigmas_type": "zero"},
    "sa-solver": {
        **_LEVELS,
        "solver_order": 2,
        "corrector_order": 2,
        "predict_x0": True,
        "lower_order_final": True,
        "tau": 1.0,
        "tau_start": 200.0,
        "tau_end": 800.0,
        "lambda_min_clipped": None,
    },
    "lcm": {"original_inference_steps": 50, "timestep_scaling": 10.0},
    "tcd": {"original_inference_steps": 50},
}
"""Options of each sampler, with their defaults: those of the published SD2 checkpoints where they set them, otherwise
those of diffusers."""

STEPS_OFFSET = 1
"""Value in the published SD2 checkpoints, which diffusers' pipelines enforce."""

CHOICES: dict[SamplerName, dict[str, tuple[Any, ...]]] = {
    "ddim": {"levels": ("spaced", "ays")},
    "ddpm": {"levels": ("spaced", "ays")},
    "dpmpp-2s": {
        "solver_order": (1, 2, 3),
        "solver_type": ("midpoint", "heun"),
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
    },
    "dpmpp-2m": {
        "solver_order": (1, 2, 3),
        "solver_type": ("midpoint", "heun"),
        "algorithm_type": ("dpmsolver++", "dpmsolver"),
    },
    "dpmpp-2m-sde": {
        "solver_order": (1, 2, 3),
        "solver_type": ("midpoint", "heun"),
        "algorithm_type": ("sde-dpmsolver++", "sde-dpmsolver"),
    },
    "deis": {"solver_order": (1, 2, 3)},
    "unipc": {"solver_order": (1, 2, 3), "solver_type": ("bh1", "bh2")},
    "sa-solver": {"solver_order": (1, 2, 3)},
}
"""Allowed values of options, for samplers that do not support all of them."""


def default_sampler(name: SamplerName, **options: Any) -> SamplerConfig:
    """Create a sampler's configuration from its defaults and ``options``.

    Raises pydantic's ValidationError if the sampler does not support a value.
    """
    return SamplerConfig(name=name, **{"steps_offset": STEPS_OFFSET, **SAMPLER_OPTIONS[name], **options})


SCHEDULES: dict[str, dict[str, Spacing | Levels]] = {
    "leading": {"spacing": "leading"},
    "trailing": {"spacing": "trailing"},
    "linspace": {"spacing": "linspace"},
    "karras": {"levels": "karras"},
    "exponential": {"levels": "exponential"},
    "beta": {"levels": "beta"},
    "lambdas": {"levels": "lambdas"},
    "ays": {"levels": "ays"},
}
"""Options that each schedule sets: the spacing of timesteps, or a rule for noise levels."""


def schedules_of(sampler: SamplerName) -> list[str]:
    """List the schedules that a sampler supports; empty if it chooses its own timesteps."""
    valid_options = SAMPLER_OPTIONS[sampler]
    levels = CHOICES.get(sampler, {}).get("levels", get_args(Levels))
    return [
        name
        for name, changes in SCHEDULES.items()
        if changes.keys() <= valid_options.keys() and changes.get("levels", "spaced") in levels
    ]


GridName = Literal["diffusers", "a1111"]
"""Origin of noise levels and timesteps."""
A1111Schedule = Literal[
    "automatic",
    "uniform",
    "karras",
    "exponential",
    "polyexponential",
    "sgm-uniform",
    "kl-optimal",
    "ays",
    "simple",
    "normal",
    "ddim",
    "beta",
]
"""Schedule types of AUTOMATIC1111, for the grid of that name."""

A1111_SCHEDULES: dict[SamplerName, tuple[A1111Schedule, ...]] = {
    **dict.fromkeys(
        (
            "dpmpp-2m",
            "dpmpp-sde",
            "dpmpp-2m-sde",
            "dpmpp-2s-a",
            "dpmpp-3m-sde",
            "euler-a",
            "euler",
            "lms",
            "heun",
            "dpm2",
            "dpm2-a",
            "dpm-fast",
            "restart",
            "lcm",
        ),
        get_args(A1111Schedule),
    ),
    **dict.fromkeys(("ddim", "pndm", "unipc"), ("automatic",)),
}
"""Samplers of AUTOMATIC1111, with the schedule types of each. The last three have timesteps of their own."""


def a1111_schedules_of(sampler: SamplerName) -> tuple[A1111Schedule, ...]:
    """List the schedule types that AUTOMATIC1111 has for a sampler.

    Raises:
        ValueError: AUTOMATIC1111 has no such sampler.
    """
    schedules = A1111_SCHEDULES.get(sampler)
    if schedules is None:
        raise ValueError(
            f"the grid a1111 has no sampler {sampler}: choose one of {', '.join(A1111_SCHEDULES)}, "
            "or the grid diffusers"
        )
    return schedules
