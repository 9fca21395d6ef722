"""How far a model's positions reach, and whether a shortcut computes what the model does.

Shortcuts rest on what most models have in common: a token sees all tokens before it, and padding
changes nothing. Sliding windows, chunks, recurrent layers and positions that depend on the length
differ, each in its own way, so a shortcut is compared with the plain model where it is used.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_ROUNDINGS = 16  # accepted relative error, in roundings of the coarsest dtype at work
_FLOOR = 1e-4  # and at least so much: float32 sums in another order, over many layers


def steady_length(model: nn.Module) -> int | None:
    """Return the number of tokens up to which positions mean the same at every length.

    Some rotary embeddings choose their frequencies by the longest row of the batch: ``longrope``
    has two sets of them, ``dynamic`` stretches them. Up to this length they do not change.

    Args:
        model: any model.

    Returns:
        None where positions never depend on the length.
    """
    limits: list[int] = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = set(kinds.values()) if isinstance(kinds, Mapping) else {kinds}
        if "longrope" in kinds:
            config = getattr(module, "config", None)
            limits += _named(getattr(config, "rope_parameters", None))
            limits += _named(vars(config) if config is not None else None)
        if "dynamic" in kinds:
            limits.append(int(getattr(module, "original_max_seq_len", 0)))
    return min(limits, default=None)


def _named(values: object) -> list[int]:
    """Find the original lengths in rotary parameters, which may be given for each kind of layer."""
    if not isinstance(values, Mapping):
        return []
    found = values.get("original_max_position_embeddings")
    inner = [n for value in values.values() if isinstance(value, Mapping) for n in _named(value)]
    return [*inner, *([int(found)] if isinstance(found, int) else [])]


def roundings(*tensors: Tensor) -> float:
    """Return the relative error to be accepted between two ways of computing the same.

    Args:
        *tensors: results and weights; the coarsest dtype counts, and that of the products
            (autocast, TF32).
    """
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    eps = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.itemsize >= 2)
    if device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        eps = max(eps, 2.0**-10)
    return max(_ROUNDINGS * eps, _FLOOR)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error of a row, relative to the spread of what is expected there.

    What all entries of a row have in common does not count: it can be large, and changes no
    probability.

    Args:
        found: (N, V).
        expected: (N, V).

    Returns:
        The largest root of a mean square over the rows; infinite where something is not finite on
        one side only.
    """
    # Words that a model never says have the logit -inf: they would drown what the others say.
    one, other = (torch.nan_to_num(x.double(), 0.0, 0.0, 0.0) for x in (found, expected))
    if not torch.equal(found.isfinite(), expected.isfinite()):
        return float("inf")
    gap = one - other
    gap, other = (x - x.mean(-1, keepdim=True) for x in (gap, other))
    spread = other.square().mean(-1).sqrt().clamp_min(1e-30)
    return float((gap.square().mean(-1).sqrt() / spread).max())
