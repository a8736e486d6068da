from sd2rt.runtime.cli import script

script()
