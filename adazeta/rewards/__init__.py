"""Scores of what a model writes: reward functions called, loaded by name, and built in."""
