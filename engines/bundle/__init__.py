"""The bundle on disk: its manifest, reading and verifying it, and writing it so that a kill loses nothing.

Also where bundles live by name, and the files that several of them share.
"""
