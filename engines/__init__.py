"""The contract between export and runtime: bundles, and the engines that run them.

Modules at this level are the contract; each folder is one implementation of it, or one thing that bundles consist of.
Loads no PyTorch.
"""
