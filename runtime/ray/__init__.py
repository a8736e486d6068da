"""The runtime on many machines, with Ray; it needs the extra `ray`, which is imported when it is used."""
