"""The GPU check for a borrowed machine: 15 minutes, 64 MiB a call, no network, packages that are missing carried.

`pack` prepares the calls here; `receive` unpacks them there; `python -m benchmarks.gpu_check --quick` then runs the
stages of `stages.py`, each as a process with a time limit, and writes every record as soon as it exists. README.md
lists the calls. Only stages that say so import `sd2rt`: its dependency pydantic travels with the kit.
"""
