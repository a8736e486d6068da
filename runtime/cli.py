"""The `sd2rt` command: finds its subcommands, and turns errors into a line and an exit code."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer

from sd2rt.engines.errors import Sd2rtError

GROUP = "sd2rt.commands"
DEBUG_VARIABLE = "SD2RT_DEBUG"
_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; see the table in :mod:`sd2rt.engines.errors`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get(DEBUG_VARIABLE))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        result = _app(arguments)(arguments, prog_name="sd2rt", standalone_mode=False)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("sd2rt: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has stopped reading; nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _report(error)
    return result if isinstance(result, int) else 0


def _report(error: Exception) -> int:
    if isinstance(error, Sd2rtError):
        print(f"sd2rt: {error}", file=sys.stderr)
        return error.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        print(f"sd2rt: {error.format_message()} (see --help)", file=sys.stderr)
        return int(error.exit_code)
    reason = " ".join(str(error).split()) or "no message"
    print(
        f"sd2rt: a bug, {type(error).__name__}: {reason}: please report it with what --debug prints",
        file=sys.stderr,
    )
    return 1


def _app(arguments: list[str]) -> typer.Typer:
    """The application with the subcommand that is wanted, or with all of them where that is not clear."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    points = [found[wanted]] if wanted in found else [found[name] for name in sorted(found)]
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
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
    app.command(point.name, no_args_is_help=False)(point.load())


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
    sys.exit(main())
