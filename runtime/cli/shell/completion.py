"""`sd2rt completion`: print the script that makes a shell complete commands, options and names."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, cast

import typer

VARIABLE = "_SD2RT_COMPLETE"
"""Environment variable by which the script asks sd2rt for completions."""
_WORDS = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")],
) -> None:
    """Print a shell's completion script, which completes options and the names of bundles and samplers."""
    from typer import completion as shells

    script = cast(Any, shells).get_completion_script(prog_name="sd2rt", complete_var=VARIABLE, shell=shell)
    print(script)


def prepare_completion() -> list[str]:
    """Return the words of the line to complete, if a shell's script asks; and have Typer answer it."""
    if VARIABLE not in os.environ:
        return []
    from typer import completion as shells

    cast(Any, shells).completion_init()
    return next((os.environ[name].split() for name in _WORDS if name in os.environ), [])[1:]
