"""A page on runs: what their folders hold, drawn and written as one HTML file."""
