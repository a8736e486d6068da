"""The contract between export and runtime: bundles, and the engines that run them.

Modules at this level define the contract. Each folder is a backend that implements it, or one component of bundles.
Nothing here imports PyTorch.
"""

import logging

# Without it, Python would print errors of libraries itself where the application has not configured logging.
logging.getLogger("sd2rt").addHandler(logging.NullHandler())
