from __future__ import annotations

from pathlib import Path

from .files import recipe_of


def test_comment(tmp_path: Path) -> None:
    comment = {
        "prompt": "{a fox}, [snow] (one)",
        "steps": 28,
        "height": 1216,
        "width": 832,
        "scale": 5.0,
        "seed": 4044,
        "n_samples": 1,
        "sampler": "k_euler",
        "noise_schedule": "native",
        "uc": "blurry",
        "cfg_rescale": 0.0,
        "sm": True,
        "request_type": "PromptGenerateRequest",
    }
    recipe = recipe_of(tmp_path, Comment=comment, Software="NovelAI", Source="Stable Diffusion XL 9CC2F394")
    assert recipe.fields == {
        "prompt": r"(a fox:1.05), (snow:0.952381) \(one\)",
        "negative_prompt": "blurry",
        "prompt_syntax": "a1111",
        "rng": "cpu",
        "num_inference_steps": 28,
        "guidance_scale": 5.0,
        "guidance_rescale": 0.0,
        "seed": 4044,
        "width": 832,
        "height": 1216,
        "sampler": "euler",
        "schedule": "normal",
        "grid": "a1111",
    }
    assert recipe.notes == (
        "sm: True is not supported and is ignored",
        "NovelAI's models are not Stable Diffusion 2: the picture differs",
    )
