"""Probes in, an update out."""
