"""Tensor-train adapters: shapes, layers, where they go, and their files."""
