"""From settings to a run, and from a run's folder to predictions."""
