"""Each op in Triton, and what the kernels share."""
