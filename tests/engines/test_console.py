"""Command-line support shared by all packages: explicitly set options, and progress bars."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from sd2rt.engines.console import given_options, print_path, progress_bar, table_console

COLUMNS = (
    "spinner",
    "{task.description}",
    "bar",
    "bytes",
    "bytes per second",
    "count",
    "elapsed",
    "remaining",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_given_options_are_those_of_the_command_line() -> None:
    app, explicit = typer.Typer(), set[str]()

    @app.command()
    def command(
        context: typer.Context,
        steps: int = 20,
        seed: Annotated[int, typer.Option(envvar="SEED_OF_THE_TEST")] = 1,
        output: Annotated[str, typer.Option("--output", "-o")] = ".",
    ) -> None:
        explicit.update(given_options(context))

    result = CliRunner().invoke(app, ["-o", ".", "--steps=20"], env={"SEED_OF_THE_TEST": "3"})
    assert result.exit_code == 0, result.output
    assert explicit == {"output", "steps"}


def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(*COLUMNS) as bar:
        assert bar is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(*COLUMNS, hidden=True) as bar:
        assert bar is None


@pytest.mark.parametrize("name", ["a\x1b[31m.png", "a\nb.png", "\u202ea.png", "\x9b", "a b.png"])
def test_a_path_is_exact_in_a_pipe_and_printable_on_a_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stdout", stream)
        print_path(Path(name), " (already built)")
        line = stream.getvalue()
        if stream.isatty():
            assert line[:-1].isprintable()
        else:
            assert line == f"{name} (already built)\n"


def test_a_bar_is_on_standard_error_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(*COLUMNS, auto_refresh=False) as bar:
        assert bar is not None
        task = bar.add_task("painting", total=3)
        print("a line")
        bar.update(task, completed=2, refresh=True)
    assert "painting" in terminal.getvalue()
    assert "2/3" in terminal.getvalue()
    assert "a line" not in terminal.getvalue()
    assert capsys.readouterr().out == "a line\n"


def test_lines_of_tables_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    table_console(150).print("word " * 30)
    assert len(capsys.readouterr().out.splitlines()) == 1
