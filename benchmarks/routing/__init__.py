"""A router before many schedulers, in virtual time."""
