"""Each op in plain PyTorch, written as its equations read: the ground truth of every backend."""

from .noise import add_noise_, perturbed_copies
from .philox import draw
from .updates import adam_update_, momentum_update_

# What the dispatcher asks of a backend's module.
__all__ = ["adam_update_", "add_noise_", "draw", "momentum_update_", "perturbed_copies"]
