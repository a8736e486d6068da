"""The `sd2rt` command and the subcommands that make images; each command is one module."""
