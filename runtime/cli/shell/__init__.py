"""Names to complete, completion scripts, examples in help, advice on wrong usage, previews on a terminal."""
