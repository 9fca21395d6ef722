"""The C library, and what loads it."""
