"""Commands for servers of other projects."""
