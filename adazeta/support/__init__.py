"""Files, checksums, memory, settings, seeds and batches; knows nothing of models."""
