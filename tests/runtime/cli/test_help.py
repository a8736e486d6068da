"""Help: its recorded sessions, its width, its usage lines and examples."""

from __future__ import annotations

import shlex

import pytest

from sd2rt.runtime.cli.shell.completion import VARIABLE
from sd2rt.runtime.cli.shell.examples import EXAMPLES
from sd2rt.runtime.samplers import SAMPLERS

from ..conftest import Command
from .page import PAGE, commands, recorded, session


def test_the_page_has_the_help_of_this_version() -> None:
    """If not, run 'python -m tests.runtime.cli.page'."""
    assert PAGE.read_text(encoding="utf-8").endswith(recorded())


@pytest.mark.parametrize("name", commands())
@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_width_is_the_terminals(name: str, width: int) -> None:
    text = session([name, "--help"], width)
    lines = text.partition("\nExamples:")[0].splitlines()[1:]
    assert max(map(len, lines)) <= width
    assert lines[0].startswith(f"Usage: sd2rt {name} ")
    assert "[[" not in lines[0]


@pytest.mark.parametrize("name", commands())
def test_examples_are_of_options_that_there_are(name: str) -> None:
    text = session([name, "--help"], 100)
    assert EXAMPLES[name]
    for example in EXAMPLES[name]:
        assert f"  {example}" in text
        for word in shlex.split(example, comments=True):
            if word.startswith("--") and word != "--help":
                assert word in text, word


def test_version(sd2rt: Command) -> None:
    assert sd2rt("-V").out == sd2rt("--version").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(sd2rt: Command, shell: str) -> None:
    said = sd2rt("completion", shell)
    assert (said.code, VARIABLE in said.out) == (0, True)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("sd2rt ru", {"run"}),
        ("sd2rt run demo-", {"demo-v", "demo-inpaint", "demo-depth", "demo-x4"}),
        ("sd2rt run x --sampler dpmpp-2", {name for name in SAMPLERS if name.startswith("dpmpp-2")}),
        ("sd2rt run x --schedule k", {"karras"}),
        ("sd2rt inspect demo-x", {"demo-x4"}),
        ("sd2rt remove demo-x", {"demo-x4"}),
        ("sd2rt samplers uni", {"unipc"}),
        ("sd2rt serve demo-i", {"demo-inpaint"}),
        ("sd2rt bench demo-d", {"demo-depth"}),
    ],
)
def test_completions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, names: set[str]
) -> None:
    from sd2rt.runtime.cli.main import main

    monkeypatch.setenv(VARIABLE, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code in (0, None)
    assert set(capsys.readouterr().out.split()) == names
