"""What is measured: models, data, steps, and the reference path."""
