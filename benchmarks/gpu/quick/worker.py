"""The process of one stage of the quick check: its settings come by standard input, its records go to a file.

python -m benchmarks.gpu.quick.worker STAGE RECORDS < settings.json
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from benchmarks.gpu.quick.records import OUTCOME, append
from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.quick.stages import choose
from benchmarks.gpu.stage import CannotRunError
from benchmarks.gpu.tables import shown
from benchmarks.gpu.worker import failure, sound


def main() -> None:
    name, path = sys.argv[1], Path(sys.argv[2])
    settings = QuickSettings.from_json(sys.stdin.read())
    (stage,) = choose([name])
    ended: dict[str, str | None] = {OUTCOME: "done", "reason": None}
    try:
        for measured in stage.work(settings):
            # Messages of tools may name folders of this machine.
            record = json.loads(settings.shown(json.dumps(sound(measured))))
            append(path, name, record)
            print("   ", ", ".join(f"{key} {shown(value)}" for key, value in record.items()), flush=True)
    except CannotRunError as error:
        ended = {OUTCOME: "skipped", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        ended = {OUTCOME: "failed", "reason": failure(error)}
    if ended["reason"] is not None:
        ended["reason"] = settings.shown(ended["reason"])
    append(path, name, ended)


if __name__ == "__main__":
    main()
