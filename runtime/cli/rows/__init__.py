"""Rows of prompts: lines of standard input, and files of JSON lines, each with options of its own."""
