"""The README's and the docs' Python, as a user's type checkers see it: from a wheel and from a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import PIL
import pydantic
import pytest

from .wheels import built_wheel

ROOT = Path(__file__).parents[1]

Checker = Callable[..., subprocess.CompletedProcess[str]]

SURFACE = """
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sd2rt import AsyncPipeline, AsyncProgress, AsyncRun, EngineError, OutOfMemoryError
from sd2rt import BundleError, Output, Pipeline, Progress, Recipe, Request, Run, Sd2rtError, read_recipe
from sd2rt import __version__


def requests() -> list[Request]:
    plain = Request(prompt="a fox")
    full = Request(
        prompt="a fox",
        negative_prompt=None,
        seed=3,
        guidance_scale=[9, 3],
        guidance_interval=(0.3, 5.5),
        timesteps=[999, 500, 1],
        sampler="dpmpp-2m",
        sampler_options={"solver_order": 3},
        image="cats.jpg",
        strength=0.5,
        width=512,
        height=512,
    )
    return [plain, full]


def shapes(output: Output[NDArray[np.float32]]) -> tuple[int, ...]:
    return output.images.shape


def first(run: Run) -> Image:
    for progress in run:
        step: Progress = progress
        print(step.step, step.steps, step.timestep)
        assert_type(step.previews(decoder=True), list[Image])
    return run.result()[0].images[0]


async def watched(run: AsyncRun) -> Image:
    async for progress in run:
        step: AsyncProgress = progress
        print(step.step, step.steps, step.timestep, step.done / step.total)
        assert_type(step.previews(), list[Image])
        assert_type(await step.decoded(), list[Image])
    return (await run.result())[0].images[0]


async def serve() -> None:
    opened = await AsyncPipeline.open("demo", threads=2, backend="onnxruntime")
    await opened.close()
    async with AsyncPipeline.open("demo", device="cpu") as pipe:
        assert_type((await pipe("a fox")).images, list[Image])
        assert_type(await pipe("a fox", output_type="np"), Output[NDArray[np.float32]])
        assert_type((await pipe.generate(requests()))[0].images[0], Image)
        mixed = await pipe.generate([Request(prompt="a"), Request(prompt="b", output_type="np")])
        print(len(mixed), pipe.pipeline.preview.error)
        async with pipe.stream("a fox", previews="decoder", num_inference_steps=4) as run:
            (await watched(run)).save("fox.png")
        async with pipe.stream("a fox", previews=True, output_type="np") as arrays:
            assert_type((await arrays.result())[0], Output[NDArray[np.float32]])
            for outcome in await arrays.outcomes():
                print(outcome.exit_code if isinstance(outcome, EngineError) else outcome.seeds)


def main() -> None:
    try:
        with Pipeline.open("demo", device="cpu", threads=2) as pipe:
            assert_type(pipe("a fox").images, list[Image])
            assert_type(pipe(["a fox", "a wolf"], output_type="pil", seed=1), Output[list[Image]])
            print(shapes(pipe("a fox", output_type="np")), shapes(pipe("a fox", output_type="latent")))
            assert_type(pipe.generate(requests())[0].images[0], Image)
            arrays = pipe.generate([Request(prompt="a", output_type="np"), Request(prompt="b", output_type="latent")])
            print(arrays[0].images.mean(), arrays[0].seeds)
            mixed = pipe.generate([Request(prompt="a"), Request(prompt="b", output_type="np")])
            print(len(mixed))
            with pipe.stream("a fox", num_inference_steps=4) as run:
                first(run).save("fox.png")
            recipe: Recipe = read_recipe("fox.png")
            pipe(**recipe.fields).images[0].save("again.png")
            pipe.upscale(pipe("a fox"), "a fox").images[0].save("large.png")
            print(pipe.manifest.variant, pipe.backend, pipe.device, pipe.precision, __version__)
    except BundleError as error:
        print(error.exit_code)
    except OutOfMemoryError as error:
        print(error.exit_code)
    except Sd2rtError as error:
        print(error)
"""

WRONG = """
from sd2rt import AsyncPipeline, Pipeline, Request

def main(pipe: Pipeline, tasks: AsyncPipeline) -> None:
    Request(prompt="a", sise=3)
    Request(prompt=3)
    pipe("a", output_type="png")
    pipe("a", output_type="np").images.save("a.png")
    pipe("a", steps=3)
    AsyncPipeline.open("demo", threads="2")
    AsyncPipeline.open("demo", size=3)
    tasks.stream("a", previews="matrix")
    tasks.stream("a", steps=3)
"""
"""One mistake a line: checkers that call it right see nothing of the package."""


PAGES = ("README.md", "docs/python.md", "docs/loras.md", "docs/reference.md")


def pages_python() -> str:
    """The blocks of the pages, in order, as one program: later ones go on from earlier ones."""
    program = []
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        assert blocks, page
        program += blocks
    return "\n".join(program)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "pages.py").write_text(pages_python())
    (folder / "surface.py").write_text(SURFACE)
    (folder / "pyrightconfig.json").write_text("{}")
    return folder


@pytest.fixture(scope="module", params=["editable", "wheel"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has sd2rt as users install it, and what sd2rt needs."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    if request.param == "wheel":
        with zipfile.ZipFile(built_wheel(tmp_path_factory.mktemp("dist"))) as wheel:
            wheel.extractall(packages)
        paths: list[object] = []
    else:
        paths = [ROOT / "src"]
    # A .pth file found through another is not followed: what is installed editable here does not come along.
    others = {str(Path(str(module.__file__)).parents[1]) for module in (numpy, PIL, pydantic)}
    (packages / "with_dependencies.pth").write_text("\n".join(map(str, [*paths, *sorted(others)])) + "\n")
    return folder / "bin" / "python"


def checked(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)


def mypy(python: Path, folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "mypy", "--strict", "--python-executable", str(python)]
    return checked([*command, "--cache-dir", str(folder / "cache"), *files], folder)


def basedpyright(python: Path, folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from basedpyright.pyright import main; main()"]
    return checked([*command, "--level", "error", "--pythonpath", str(python), *files], folder)


def test_mypy_strict_finds_nothing(python: Path, sources: Path) -> None:
    found = mypy(python, sources, "pages.py", "surface.py")
    assert found.returncode == 0, found.stdout + found.stderr


def test_basedpyright_finds_nothing(python: Path, sources: Path) -> None:
    found = basedpyright(python, sources, "pages.py", "surface.py")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_mistakes_are_found(checker: Checker, python: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "pyrightconfig.json").write_text("{}")
    found = checker(python, tmp_path, "wrong.py")
    lines = {int(number) for number in re.findall(r"wrong\.py:(\d+):\S* ?(?:- )?error", found.stdout)}
    assert lines == set(range(5, 14)), found.stdout
