"""Make ``sd2rt`` importable from a bare checkout: package link, metadata, wheels, library paths."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def make_site(folder: Path, root: Path = ROOT) -> Path:
    """Fill ``folder`` as an installation of the checkout ``root`` would, and return it.

    ``sd2rt`` becomes a link to the checkout's package; the metadata beside it tells the command line its version and
    subcommands. The folder comes first on PYTHONPATH, so that this checkout is measured, not an installed ``sd2rt``.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "sd2rt"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(
        root / project["tool"]["setuptools"]["package-dir"][""] / "sd2rt", target_is_directory=True
    )
    metadata_table = project["project"]
    metadata = folder / f"sd2rt-{metadata_table['version']}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: sd2rt\nVersion: {metadata_table['version']}\n", encoding="utf-8"
    )
    lines = [
        line
        for group, points in metadata_table["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def install_wheels(wheels: Path, folder: Path) -> Path:
    """Install all wheels of a folder into ``folder``, without a network; nothing is done if they are installed.

    Raises:
        RuntimeError: the folder has no wheels, or pip refuses one; with pip's last line.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise RuntimeError(f"{wheels} holds no wheels")
    listing = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    done = folder / "installed.txt"
    if done.is_file() and done.read_text() == listing:
        return folder
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    pip += ["--disable-pip-version-check", "--upgrade", "--target", str(folder), *map(str, files)]
    process = subprocess.run(pip, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        lines = (process.stderr or process.stdout).strip().splitlines() or [f"exit code {process.returncode}"]
        raise RuntimeError(f"pip could not install the wheels of {wheels}: {lines[-1]}")
    done.write_text(listing)
    return folder


def environment(base: dict[str, str], site: Path, wheels: Path | None) -> dict[str, str]:
    """Environment variables of the stages: ``base`` plus the site, the wheels and CUDA's libraries."""
    paths = [str(site), *([] if wheels is None else [str(wheels)])]
    if base.get("PYTHONPATH"):
        paths.append(base["PYTHONPATH"])
    libraries = _cuda_libraries(wheels)
    if base.get("LD_LIBRARY_PATH"):
        libraries.append(base["LD_LIBRARY_PATH"])
    variables = {**base, "PYTHONPATH": os.pathsep.join(paths)}
    if libraries:
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return variables


def _cuda_libraries(wheels: Path | None) -> list[str]:
    """Library folders of the CUDA pip packages, where a backend installed elsewhere does not look."""
    spec = find_spec("nvidia")
    packages = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    if wheels is not None:
        packages.append(wheels / "nvidia")
    folders = [folder for place in packages for folder in sorted(place.glob("**/lib")) if folder.is_dir()]
    if wheels is not None:
        folders += [folder for folder in sorted(wheels.glob("tensorrt*_libs")) if folder.is_dir()]
    return [str(folder) for folder in folders]
