"""The `sd2rt` command: finds its subcommands, and turns errors into a line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer

from sd2rt.engines.console import report
from sd2rt.engines.errors import EngineError, RequestError, Sd2rtError
from sd2rt.engines.option_groups import SectionedCommand, expand_groups
from sd2rt.engines.path_argument import is_path
from sd2rt.engines.termination import ending
from sd2rt.runtime.cli.shell.completion import VARIABLE, prepare_completion
from sd2rt.runtime.cli.shell.examples import EXAMPLES
from sd2rt.runtime.cli.shell.usage import with_dashes, wrong_usage

GROUP = "sd2rt.commands"
DEBUG_VARIABLE = "SD2RT_DEBUG"
_USAGE = 2
_WIDEST = 1000
_INTERRUPTED = 130
_NOBODY_READS = 141


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; see the table in :mod:`sd2rt.engines.errors`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get(DEBUG_VARIABLE))
    arguments = [with_dashes(argument) for argument in arguments if argument != "--debug"]
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        code = _stop_printing()
    except SystemExit as stop:
        # Typer answers a broken pipe so.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = _stop_printing()
    except Exception as error:
        if debug:
            with contextlib.suppress(OSError):
                traceback.print_exc()
        code = _report(error)
    # Typer too returns this code for a KeyboardInterrupt, whichever signal raised it.
    if code == _INTERRUPTED:
        code, line = ending()
        report(line)
    return code


def _run(arguments: list[str]) -> int:
    if not all(map(is_path, arguments)):
        raise RequestError(
            "an argument holds a NUL or a lone surrogate, which no command line can: type it again"
        )
    completed = prepare_completion()
    app = _app(completed or arguments)
    # Without arguments, help is shown, but the exit code is that of wrong usage.
    result = app(arguments or ["--help"], prog_name="sd2rt", standalone_mode=False, complete_var=VARIABLE)
    if not arguments:
        return _USAGE
    return result if isinstance(result, int) else 0


def _stop_printing() -> int:
    """Discard further output, whose reader is gone, and return the exit code for that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _NOBODY_READS


def _report(error: Exception) -> int:
    code, text = _described(error)
    if code == EngineError.exit_code and isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _stop_printing()
    # A message is one line, even if it quotes text of several.
    report(" ".join(text.split()))
    return code


def _described(error: Exception) -> tuple[int, str]:
    """Exit code and message of an exception that ended a command."""
    text = str(error) or "no message"
    if isinstance(error, Sd2rtError):
        return error.exit_code, text
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return int(error.exit_code), wrong_usage(error)
    if isinstance(error, MemoryError):
        return EngineError.exit_code, f"out of memory ({text}): make smaller images, or fewer at once"
    if isinstance(error, OSError):
        return _described_os_error(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return (
            EngineError.exit_code,
            "no thread can be started: raise the limits of processes and memory (ulimit)",
        )
    return 1, f"a bug, {type(error).__name__}: {text}: please report it with the output of --debug"


def _described_os_error(error: OSError) -> tuple[int, str]:
    try:
        os.getcwd()
    except OSError:
        return (
            RequestError.exit_code,
            "the working directory is gone or cannot be read: change to another folder",
        )
    if error.errno == errno.ENOSPC and error.filename is None:
        return EngineError.exit_code, "the disk of standard output is full: make room"
    place = "an operation" if error.filename is None else f"an operation on {error.filename}"
    return EngineError.exit_code, f"{place} failed ({error.strerror or error}): --debug shows the operation"


def _app(arguments: list[str]) -> typer.Typer:
    """Build the application: with the subcommand in ``arguments`` alone, or with all of them if there is none."""
    commands = {point.name: point for point in entry_points(group=GROUP)}
    word = next((argument for argument in arguments if not argument.startswith("-")), None)
    points = [commands[word]] if word in commands else [commands[name] for name in sorted(commands)]
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={
            "help_option_names": ["-h", "--help"],
            # The width of help is the terminal's.
            "max_content_width": _WIDEST,
        },
    )
    app.callback(help="Stable Diffusion 2 from engines, with no PyTorch in the process that makes images.")(
        _root
    )
    for point in points:
        _add(app, point)
    return app


def _add(app: typer.Typer, point: EntryPoint) -> None:
    examples = "\n".join(EXAMPLES.get(point.name, ()))
    command = expand_groups(point.load())
    app.command(point.name, cls=SectionedCommand, epilog=examples, no_args_is_help=False)(command)


def _show_version(requested: bool) -> None:
    if requested:
        print(f"sd2rt {version('sd2rt')}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks.")] = False,
) -> None:
    return
