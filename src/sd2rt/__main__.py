from sd2rt.runtime.cli.main import script

script()
