"""Make the first image of a process: import, open and image times as JSON, or sd2rt's error line and exit code.

python -m benchmarks.gpu.first_image BUNDLE BACKEND DEVICE SIDE STEPS
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    began = time.perf_counter()
    bundle, backend, device, side, steps = sys.argv[1:]
    from sd2rt.engines.errors import Sd2rtError
    from sd2rt.runtime import Pipeline

    imported = time.perf_counter()
    try:
        with Pipeline.open(bundle, device=device, backend=backend) as pipeline:  # type: ignore[arg-type]
            opened = time.perf_counter()
            options = {"num_inference_steps": int(steps), "width": int(side), "height": int(side)}
            pipeline("a lighthouse", seed=1, **options)  # type: ignore[call-overload]
            first = time.perf_counter()
            pipeline("a lighthouse", seed=1, **options)  # type: ignore[call-overload]
            second = time.perf_counter()
    except Sd2rtError as error:
        print(f"sd2rt: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    times = {"import_s": imported - began, "open_s": opened - imported}
    print(json.dumps({**times, "first_image_s": first - opened, "second_image_s": second - first}))


if __name__ == "__main__":
    main()
