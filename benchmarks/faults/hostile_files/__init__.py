"""Generators of hostile files, by kind."""
