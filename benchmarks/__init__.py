"""Benchmarks against a reference PyTorch path: ``python -m benchmarks NAME --json FILE``."""
