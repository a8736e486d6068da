"""Start of the ``sd2rt`` command, which imports nothing before it can answer an interrupt."""

import os
import sys

_LINES = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "terminated: its terminal was closed"}
"""Lines of the signals that end a command; its exit code is 128 and the signal."""


def script() -> None:
    """Run the command line as the installed script, and end the process with its exit code."""
    try:
        _interrupt_imports()
        code = _run()
    except KeyboardInterrupt:
        _say(_LINES["SIGINT"])
        code = 130
    # Freeing engines and modules one by one would take 70 ms more.
    os._exit(code)


def _run() -> int:
    import signal

    _open_closed_streams()
    _print_any_name()
    from sd2rt.engines.address_space import require_address_space
    from sd2rt.engines.errors import Sd2rtError
    from sd2rt.engines.termination import interrupt_at

    try:
        # Measured with 2 cores: Python, Typer, pydantic and NumPy take 170 MB of address space, of which NumPy's BLAS
        # takes 41 MB for each core.
        require_address_space("sd2rt", 180, 40)
    except Sd2rtError as error:
        _say(str(error))
        return error.exit_code
    from sd2rt.runtime.cli.main import main

    for name, line in _LINES.items():
        if signal.getsignal(signal.Signals[name]) is _exit_at:
            interrupt_at(signal.Signals[name], line)
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Errors of standard output were reported already; those of standard error cannot be.
            continue
    return code


def _interrupt_imports() -> None:
    """Exit at an interrupt while modules are imported: some convert the exception of Python's own handler."""
    import signal

    for name in _LINES:
        number = signal.Signals[name]
        # Background jobs of a shell ignore an interrupt, and those of nohup the end of the terminal.
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _exit_at)


def _exit_at(number: int, frame: object) -> None:
    import signal

    _say(_LINES[signal.Signals(number).name])
    os._exit(128 + number)


def _say(line: str) -> None:
    """Write a line to standard error, if that is open; without Python's buffers, which a handler may not touch."""
    try:
        os.write(2, f"sd2rt: {line}\n".encode())
    except OSError:
        return


def _open_closed_streams() -> None:
    """Open those of the three standard streams that are closed: the next file opened would take their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _print_any_name() -> None:
    """Print names of files in any encoding of standard output: as their bytes, or with escapes of characters.

    A path that cannot be encoded would otherwise end a run whose image has been saved.
    """
    import codecs
    import io

    codecs.register_error("sd2rt", _name_bytes)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal might take single bytes for control codes.
        sys.stdout.reconfigure(errors="backslashreplace" if sys.stdout.isatty() else "sd2rt")


def _name_bytes(error: UnicodeError) -> tuple[bytes, int]:
    import codecs

    if not isinstance(error, UnicodeEncodeError):
        raise error
    try:
        return os.fsencode(error.object[error.start : error.end]), error.end
    except UnicodeEncodeError:
        escaped, end = codecs.backslashreplace_errors(error)
        assert isinstance(escaped, str)
        return escaped.encode("ascii"), end
