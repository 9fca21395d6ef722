from tests.helpers.bits import same_bits

__all__ = ["same_bits"]
