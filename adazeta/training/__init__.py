"""The trainer of transformers made of it: loop, journal, resume, processes."""
