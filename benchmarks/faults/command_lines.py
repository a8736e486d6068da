"""Random command lines over all commands and options of ``sd2rt``, from its own declarations."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.faults.mutations import NUMBERS, TEXTS

COMMANDS = ("run",) * 12 + (
    "inspect",
    "verify",
    "samplers",
    "samplers",
    "prepare",
    "bench",
    "build",
    "parity",
    "batch",
    "batch",
    "list",
    "remove",
    "cache",
    "doctor",
    "completion",
    "x",
)

_GOOD: dict[str, tuple[str, ...]] = {
    "--steps": ("1", "2", "3"),
    "--guidance": ("1", "7.5", "9,3"),
    "--sampler": (
        "euler",
        "ddim",
        "dpmpp-2m",
        "unipc",
        "lcm",
        "pndm",
        "sa-solver",
        "dpmpp-sde",
        "heun",
        "deis",
    ),
    "--schedule": ("karras", "trailing", "leading", "beta", "ays", "lambdas", "exponential"),
    "--sampler-option": (
        "solver_order=2",
        "s_churn=1",
        "sigma_max=10",
        "tau=0.5",
        "final_sigmas_type=sigma_min",
    ),
    "--size": ("64x64", "128x128", "64x128", "64"),
    "--sigmas": ("10,1,0", "1,0.1"),
    "--timesteps": ("900,500,1", "999"),
    "--seed": ("1", "-1"),
    "--count": ("1", "2"),
    "--threads": ("1", "2"),
    "--rng": ("cpu", "cuda", "cuda:82x1536"),
    "--backend": ("onnxruntime", "auto", "openvino", "tensorrt"),
    "--device": ("cpu", "cuda"),
    "--preset": ("turbo", "lcm"),
    "--prompt-syntax": ("a1111", "plain"),
    "--variation": ("3:0.5",),
    "--strength": ("0.5", "1"),
    "--tile": ("32", "64"),
    "--eta": ("0", "1"),
    "--rescale": ("0.7",),
    "--guidance-interval": ("0.3:5",),
    "--part": ("denoiser", "decoder"),
    "--format": ("png", "jpeg", "webp"),
    "--quality": ("1", "100", "101"),
    "--preview": ("none", "kitty", "rough"),
    "--precision": ("fp16", "fp32", "bf16"),
    "--negative": ("dull", "<lora:empty:1>"),
}
_SLOW = {
    # Valid values of other sizes only take long.
    "--steps": ("1", "2", "1001", "0"),
    "--size": ("64x64", "65x64", "0x0", "64x64x64", "8192x64", "-64x64"),
    "--width": ("64", "128", "0", "65", "a", "8192"),
    "--height": ("64", "128", "0", "65", "a", "8192"),
    "--count": ("1", "2", "0", "-1"),
    "--tile": ("32", "31", "0", "40"),
    "--threads": ("1", "2", "0", "-1", "1025", "2147483648", "9" * 30),
    "--batch": ("1", "0", "a", "1,1"),
    "--repetitions": ("1", "0", "a"),
    "--warmup": ("0", "-1", "a"),
}
_PATHS = {"--image", "--mask", "--depth", "--from", "--lora", "--embedding", "--output", "--save-depth", "--plot",
          "--compare", "--upscale", "--config", "--profile", "--trace", "--lora-dir", "--preview"}  # fmt: skip


@functools.cache
def options_of(command: str) -> tuple[Any, ...]:
    """Options of a command, as declared."""
    import typer

    from sd2rt.runtime.cli.main import _app

    group: Any = typer.main.get_command(_app([]))
    return tuple(item for item in group.commands[command].params if item.opts[0].startswith("-"))


def command_line(random: Random, bundle: Path, folder: Path) -> list[str]:
    """Draw the arguments of a command; files that it may name are made in ``folder``."""
    command = random.choice(COMMANDS)
    if command == "x":
        return [_text(random) for _ in range(random.randrange(3))]
    files = _files(random, bundle, folder)
    words = [command]
    if command == "samplers":
        words += [random.choice(("euler", "lcm", _text(random))) for _ in range(random.randrange(3))]
    elif command in ("list", "cache", "completion"):
        words += [random.choice(("bash", "zsh", "fish", _text(random)))] * (command == "completion")
    elif command == "remove":
        # Never the bundle that other cases use.
        words += [_text(random).replace("demo", "x") for _ in range(random.randrange(1, 3))]
    elif command == "batch":
        words += [str(bundle)] * (random.random() < 0.9)
        words += [
            random.choice(("rows.jsonl", "rows.jsonl", "-", *files)),
            "-o",
            random.choice(("out", *files)),
        ]
        words += ["--steps", "1", "--threads", "1", "--size", "64x64"]
    elif command == "build" or command == "parity":
        # Never a name that could be a repository of the Hub, or a demo that takes seconds to build.
        words.append(random.choice((*files, "./nowhere", "./" + "a" * 300, "/dev/null", "")))
    else:
        words.append(str(bundle) if random.random() < 0.8 else random.choice((*files, _text(random))))
    if command == "run":
        words.append(
            random.choice(("a red square", "", "-", "(a:1.3) AND b", "<lora:empty:1>", _text(random)))
        )
    if command == "run" and random.random() < 0.95:
        words += ["--steps", "1", "--threads", "1", "--size", "64x64"]
    if command == "bench":
        words += [
            "--no-first-image",
            "--repetitions",
            "1",
            "--steps",
            "1",
            "--size",
            "64x64",
            "--threads",
            "1",
        ]
    options = options_of(command)
    for option in random.sample(options, min(len(options), random.choice((0, 1, 1, 2, 3)))):
        words += _option(option, random, files)
    if random.random() < 0.05:
        random.shuffle(words)
        # A bench without its limits would take minutes.
        if "bench" in words or "build" in words or "parity" in words:
            words.sort(key=lambda word: word not in ("bench", "build", "parity"))
    return words


def _option(option: Any, random: Random, files: list[str]) -> list[str]:
    name = random.choice([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return [name]
    long = next((each for each in option.opts if each.startswith("--")), name)
    if long in _SLOW:
        return [name, random.choice(_SLOW[long])]
    roll = random.random()
    if long in _PATHS and roll < 0.7:
        value = random.choice((*files, "-") if long == "--output" else files)
        if long == "--lora" and roll < 0.2:
            value += ":" + str(random.choice(NUMBERS[:20] + NUMBERS[24:]))
        return [name, f"{_text(random)}={value}" if long == "--embedding" and roll < 0.3 else value]
    if long in _GOOD and roll < 0.5:
        return [name, random.choice(_GOOD[long])]
    if long == "--sampler-option":
        key = random.choice(
            ("s_churn", "sigma_min", "sigma_max", "tau", "s_noise", "solver_order", "steps_offset")
        )
        return [name, f"{key}={_text(random)}"]
    if long in ("--sigmas", "--timesteps", "--guidance", "--guidance-interval", "--variation"):
        return [name, random.choice(",,:").join(_text(random) for _ in range(random.randrange(1, 4)))]
    return [name, _text(random)]


def _text(random: Random) -> str:
    roll = random.random()
    if roll < 0.5:
        number = random.choice(NUMBERS)
        return "1" + "0" * 400 if isinstance(number, int) and abs(number) > 10**100 else str(number)
    if roll < 0.9:
        return random.choice(TEXTS)
    return "[" * (depth := random.choice((3, 70, 970, 2000))) + "]" * depth


def _row(random: Random) -> str:
    """A line for `sd2rt batch`: a prompt, JSON, or neither."""
    key = random.choice(
        ("seed", "steps", "size", "count", "sampler", "image", "guidance", "sigmas", "x", "prompt")
    )
    value = random.choice(
        (
            "1",
            "-1",
            "null",
            '"64x64"',
            '"DPM++ 2M Karras"',
            "[1, 0]",
            "{}",
            "1e999",
            "0",
            '"-"',
            '"picture.png"',
        )
    )
    return random.choice(
        (
            "a fox",
            "{",
            '{"prompt": "a"}',
            f'{{"prompt": "a", "{key}": {value}}}',
            f'{{"{key}": {value}}}',
            "[]",
        )
    )


def _files(random: Random, bundle: Path, folder: Path) -> list[str]:
    """Make odd files and folders, and return their names with those of files that do not exist."""
    from PIL import Image

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "picture.png")
    (folder / "noise.png").write_bytes(random.randbytes(100))
    (folder / "rows.jsonl").write_text("\n".join(_row(random) for _ in range(random.randrange(4))))
    (folder / "empty.safetensors").write_bytes(b"")
    header = random.choice((b"{}", b"[" * 3000, b'{"a":1' + b"0" * 500 + b"}", b'{"\\ud800":{}}', b"null"))
    (folder / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "adapter_config.json").write_bytes(header)
    (folder / "folder").mkdir()
    (folder / "folder" / "bundle.json").write_bytes(header)
    (folder / "folder" / "model_index.json").write_bytes(header)
    (folder / "loop").symlink_to("loop")
    (folder / "closed").mkdir()
    os.chmod(folder / "closed", 0)
    return [
        *(
            "picture.png",
            "noise.png",
            "empty.safetensors",
            "odd.safetensors",
            "folder",
            "loop",
            "closed/x.png",
        ),
        *(
            "nowhere.png",
            "a" * 300 + ".png",
            "loop/x.png",
            "picture.png/x.png",
            "\udcff.png",
            "/dev/full",
            "out",
        ),
        *(
            "out/new.png",
            "\x1b[31m.png",
            "folder/bundle.json",
            "a" * 250 + ".png",
            "/proc/self/mem",
            "..",
            ".",
        ),
    ]
