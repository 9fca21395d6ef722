"""Probes or gradients in, an update out."""
