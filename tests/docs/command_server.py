"""Run sd2rt commands in forks of one process that has imported everything, since imports dominate small commands.

    python command_server.py SOCKET              the server
    python command_server.py SOCKET ARGUMENT...  run a command with this process's folder, environment and streams

A fork runs :func:`sd2rt.launch.script`, like the installed command. The server starts no threads before it
forks.
"""

import json
import os
import socket
import sys

_STREAMS = (0, 1, 2)
_LONGEST = 1 << 20


def serve(path: str) -> None:
    import importlib

    for module in (
        "onnxruntime",
        "sd2rt.export.build",
        "sd2rt.export.checkpoints.checkpoint",
        "sd2rt.runtime.cli.main",
        "sd2rt.runtime.cli.run",
        "sd2rt.runtime.pipeline.pipeline",
    ):
        importlib.import_module(module)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            message, streams, _, _ = socket.recv_fds(connection, _LONGEST, len(_STREAMS))
            child = os.fork()
            if not child:
                server.close()
                run(json.loads(message), streams)
            for stream in streams:
                os.close(stream)
            _, status = os.waitpid(child, 0)
            connection.sendall(bytes([os.waitstatus_to_exitcode(status) % 256]))


def run(command: dict[str, object], streams: list[int]) -> None:
    from sd2rt.launch import script

    for target, stream in zip(_STREAMS, streams, strict=True):
        os.dup2(stream, target)
    os.chdir(str(command["folder"]))
    os.environ.clear()
    os.environ.update(command["environment"])  # type: ignore[call-overload]
    sys.argv = ["sd2rt", *command["arguments"]]  # type: ignore[misc]
    try:
        script()
    finally:
        # Reached if script raises, such as SystemExit by --help.
        os._exit(1)


def ask(path: str, arguments: list[str]) -> int:
    command = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(command).encode()], _STREAMS)
        [code] = connection.recv(1)
    return code


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
