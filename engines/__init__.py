"""The contract between export and runtime: bundles, and the engines that run them.

Modules at this level define the contract. Each folder is a backend that implements it, or one component of bundles.
Nothing here imports PyTorch.
"""
