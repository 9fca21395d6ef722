"""The losses of a batch at little cost: packing, a shared trunk, caches."""
