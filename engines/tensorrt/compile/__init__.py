"""Compiling engines: profiles are planned here, and each engine is compiled and checked by a child process."""
