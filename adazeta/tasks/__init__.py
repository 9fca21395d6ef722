"""Records in; token batches, losses and metrics out."""
