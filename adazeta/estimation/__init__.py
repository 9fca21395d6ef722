"""A loss in, a few scalars out."""
