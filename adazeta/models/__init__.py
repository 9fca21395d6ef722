"""Base models: load them, and find one's way in them."""
