"""The OpenVINO backend: compiles a bundle's graphs for CPUs, in bfloat16 where asked."""
