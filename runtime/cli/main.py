"""The `sd2rt` command: finds its subcommands, and turns errors into a line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer

from sd2rt.engines.errors import EngineError, Sd2rtError
from sd2rt.engines.option_groups import SectionedCommand, expand_groups

GROUP = "sd2rt.commands"
DEBUG_VARIABLE = "SD2RT_DEBUG"
_USAGE = 2
_INTERRUPTED = 130
_NOBODY_READS = 141


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; see the table in :mod:`sd2rt.engines.errors`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get(DEBUG_VARIABLE))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        code = _stop_printing()
    except SystemExit as stop:
        # Typer's own answer to a broken pipe.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        code = _stop_printing()
    except Exception as error:
        if debug:
            traceback.print_exc()
        code = _report(error)
    if code == _INTERRUPTED:
        print("sd2rt: interrupted", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    app = _app(arguments)
    # Without a word the help is the best answer, and still no success.
    result = app(arguments or ["--help"], prog_name="sd2rt", standalone_mode=False)
    if not arguments:
        return _USAGE
    return result if isinstance(result, int) else 0


def _stop_printing() -> int:
    """Whoever read the output has stopped reading: nothing more can be said to them, and work may be undone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _NOBODY_READS


def _report(error: Exception) -> int:
    code, text = 1, " ".join(str(error).split()) or "no message"
    if isinstance(error, Sd2rtError):
        # Whatever is quoted in it, a message is one line.
        code, text = error.exit_code, " ".join(str(error).splitlines())
    elif hasattr(error, "format_message") and hasattr(error, "exit_code"):
        code, text = int(error.exit_code), f"{' '.join(error.format_message().split())} (see --help)"
    elif isinstance(error, MemoryError):
        code, text = (
            EngineError.exit_code,
            f"out of memory ({text}): ask for smaller images, or fewer at once",
        )
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        code, text = EngineError.exit_code, "standard output's disk is full: make room"
        _stop_printing()
    else:
        text = f"a bug, {type(error).__name__}: {text}: please report it with what --debug prints"
    print(f"sd2rt: {text}", file=sys.stderr)
    return code


def _app(arguments: list[str]) -> typer.Typer:
    """The application with the subcommand that is wanted, or with all of them where that is not clear."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    points = [found[wanted]] if wanted in found else [found[name] for name in sorted(found)]
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help="Stable Diffusion 2 from engines, with no PyTorch in the process that makes images.")(
        _root
    )
    for point in points:
        _add(app, point)
    return app


def _add(app: typer.Typer, point: EntryPoint) -> None:
    app.command(point.name, cls=SectionedCommand, no_args_is_help=False)(expand_groups(point.load()))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sd2rt {version('sd2rt')}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks.")] = False,
) -> None:
    return


def script() -> None:
    """The entry point that is installed as ``sd2rt``."""
    _open_closed_streams()
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # The process is over: taking engines and modules apart piece by piece would cost it 70 ms more.
        os._exit(code)


def _open_closed_streams() -> None:
    """Started without one of the three, Python has None for it, and the next file would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
