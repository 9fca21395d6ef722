"""The tables of README.md and docs/, a file a subject."""
