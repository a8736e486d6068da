"""Rows of prompts with options of their own: read, hashed, drawn several at a time, recorded.

`sd2rt batch` draws them on one machine, and :mod:`sd2rt.runtime.ray` on many.
"""
