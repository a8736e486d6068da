"""Bundles on disk: the manifest, reading and verification, crash-safe writing.

Also the cache of named bundles, and storage of files that several bundles share.
"""
