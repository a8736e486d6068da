"""Start of the worker process: ``python -P -m sd2rt.runtime.server.worker --fd N --parent PID``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys

from sd2rt.runtime.server.worker.parent_death import die_with_parent
from sd2rt.runtime.server.worker.wire import Connection, WireError


def main() -> int:
    """Serve the front at the other end of an inherited socket; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sd2rt.runtime.server.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited end of a socket pair")
    parser.add_argument("--parent", type=int, required=True, help="process that started this one")
    options = parser.parse_args()
    # The front decides when a worker ends: a terminal's interrupt reaches both, and running requests are finished.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(options.parent)
    logging.basicConfig(format="%(asctime)s worker %(process)d %(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    try:
        return asyncio.run(_serve(socket.socket(fileno=options.fd)))
    except WireError as error:
        logging.getLogger(__name__).error("%s: this worker ends", error)
        return 1


async def _serve(end: socket.socket) -> int:
    connection = await Connection.open(end)
    # Imported while the connection is open already: whoever waits at its other end sees an error here.
    from sd2rt.runtime.server.worker import request_warnings
    from sd2rt.runtime.server.worker.worker import serve

    request_warnings.install()
    code = await serve(connection)
    # Nothing is left to wait for; threads may be in the middle of a call.
    logging.shutdown()
    sys.stderr.flush()
    await connection.flushed()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
