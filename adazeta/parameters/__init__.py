"""All trainable parameters as one index space, and exact perturbed views of it."""
