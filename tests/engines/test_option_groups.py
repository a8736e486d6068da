"""Groups of options: one signature, one declaration, a section of help each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from sd2rt.engines.option_groups import OptionGroup, SectionedCommand, expand_groups

Width = Annotated[int, typer.Option(min=1, help="Pixels [across].")]


@dataclass(frozen=True, slots=True)
class Size(OptionGroup):
    panel: ClassVar[str] = "Size"

    width: Width = 8
    height: Annotated[int | None, typer.Option(help="Pixels down.")] = None


@dataclass(frozen=True, slots=True)
class NamedSize(Size):
    name: Annotated[list[str] | None, typer.Option("--called", "-c", help="Names.")] = None


@dataclass(frozen=True, slots=True)
class Depth(OptionGroup):
    panel: ClassVar[str] = "Depth"

    depth: Width = 3


def application(command: Any) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(cls=SectionedCommand)(expand_groups(command))
    return app


def test_a_command_gets_its_groups_and_its_own_parameters() -> None:
    calls: list[tuple[Any, ...]] = []

    def command(
        context: typer.Context, size: NamedSize, depth: Depth, word: Annotated[str, typer.Argument()]
    ) -> None:
        calls.append((size, depth, word, set(context.params)))

    names = {"width", "height", "name", "depth", "word"}
    assert CliRunner().invoke(application(command), ["a"]).exit_code == 0
    given = ["b", "--height", "2", "-c", "x", "--called", "y", "--depth", "5"]
    assert CliRunner().invoke(application(command), given).exit_code == 0
    assert calls == [
        (NamedSize(8, None, None), Depth(3), "a", names),
        (NamedSize(8, 2, ["x", "y"]), Depth(5), "b", names),
    ]


def test_checks_of_options_hold() -> None:
    def command(size: Size) -> None: ...

    result = CliRunner().invoke(application(command), ["--width", "0"])
    assert result.exit_code == 2
    assert "--width" in result.output


def test_help_has_a_section_for_each_group() -> None:
    def command(
        depth: Depth, size: Size, plain: Annotated[bool, typer.Option("--plain", help="Alone.")] = False
    ) -> None:
        """Do something."""

    text = CliRunner().invoke(application(command), ["--help"]).output
    assert text.index("\nDepth:\n") < text.index("--depth") < text.index("\nSize:\n") < text.index("--width")
    assert text.index("--height") < text.index("\nOptions:\n") < text.index("--plain") < text.index("--help")
    # The declaration that both groups share keeps its text, brackets too.
    assert text.count("Pixels [across].") == 2
    assert "Arguments:" not in text


def test_two_parameters_of_one_name_are_refused() -> None:
    def command(size: Size, named: NamedSize) -> None: ...

    with pytest.raises(TypeError, match="two parameters named height, width"):
        expand_groups(command)
