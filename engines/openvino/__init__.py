"""The OpenVINO backend: compiles a bundle's graphs for CPUs, optionally in bfloat16."""
