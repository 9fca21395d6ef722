"""A digest of everything that decides what a frozen part of a model computes."""

import hashlib
from collections.abc import Iterable

import torch
import transformers
from torch import Tensor, nn

from adazeta.support.checksum import add_tensors, plain_parts


def frozen_tensors(model: nn.Module, above: Iterable[nn.Module] = ()) -> dict[str, Tensor]:
    """Return the frozen parameters and the buffers of a model by name.

    Args:
        model: the model.
        above: modules whose tensors do not count.

    Returns:
        Also buffers that are not saved with the model, such as rotary frequencies. Of quantised
        tensors that wrap others, those.
    """
    left_out = {id(t) for m in above for t in (*m.parameters(), *m.buffers())}
    named = [*model.named_parameters(), *model.named_buffers()]
    frozen = [(n, t) for n, t in named if not t.requires_grad and id(t) not in left_out]
    return dict(part for n, t in frozen for part in plain_parts(n, t))


def versions(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Return what changes when a tensor is written in place, moved or replaced.

    Cheap enough for every step. Writing through ``tensor.data`` or NumPy goes unnoticed.
    """
    return tuple((tensor._version, tensor.data_ptr()) for tensor in tensors)


def fingerprint(
    model: nn.Module,
    tensors: dict[str, Tensor],
    *extra: object,
    above: Iterable[nn.Module] = (),
) -> str:
    """Digest a model's frozen tensors and what decides how they are used.

    Reads every tensor once, about a second per gigabyte.

    Args:
        model: the model; its configuration, its modules' description and type count.
        tensors: see :func:`frozen_tensors`.
        *extra: anything else that counts, by its ``repr``.
        above: modules that do not count, with all that is in them.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: a tensor has no data here (offloaded weights).
    """
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update(repr(values).encode())

    # Versions, since a library may round differently in the next one.
    add(torch.__version__, transformers.__version__, type(model).__qualname__, *extra)
    config = getattr(model, "config", None)
    if config is not None:
        # The attention implementation is not part of the configuration's own dictionary.
        add(config.to_json_string(), getattr(config, "_attn_implementation", None))
    left_out = {id(part) for module in above for part in module.modules()}
    counted = [(n, type(m).__qualname__) for n, m in model.named_modules() if id(m) not in left_out]
    add(counted)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} has no data on this device (offloaded weights), so what it computes "
                "cannot be kept; set cache_trunk to 'none'"
            )
        add(tensor.device.type)
        add_tensors(digest, [(name, tensor)])
    add_tensors(digest, _scales(model))
    return digest.hexdigest()


def _scales(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return what is saved with a model beside its parameters and buffers: bitsandbytes' scales."""
    known = {id(t) for t in (*model.parameters(), *model.buffers())}
    state = model.state_dict(keep_vars=True)
    return [(n, t) for n, t in state.items() if isinstance(t, Tensor) and id(t) not in known]
