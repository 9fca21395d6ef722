"""Batches in which nothing is masked, without asking the device whether that is so.

Models of transformers leave a mask out where all of it is one, and mark texts that share a row
where positions start anew. While a CUDA graph is recorded they cannot look: they write the mask
down, and attention to a mask is another kernel, which rounds differently.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AttentionInterface, PreTrainedModel

MASK = "attention_mask"
_PLAIN = "sdpa"
# As transformers knows no masks for this one, its models make none.
_UNMASKED = "adazeta_unmasked"


@contextmanager
def unmasked(model: nn.Module) -> Iterator[None]:
    """Run a model as it runs where nothing is masked, inside the context.

    It is given no attention mask, and one with torch's attention makes none beyond the causal one.
    A model whose attention sees a window shorter than the text would see all of it: compare what
    comes out.

    Args:
        model: of transformers, or one that holds such a model; of others only the mask is left out.
    """

    def leave_out(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {name: value for name, value in kwargs.items() if name != MASK}

    known = AttentionInterface()
    if _UNMASKED not in known:
        AttentionInterface.register(_UNMASKED, known[_PLAIN])
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    changed = [c for c in configs.values() if c._attn_implementation == _PLAIN]
    handle = model.register_forward_pre_hook(leave_out, with_kwargs=True)
    try:
        for config in changed:
            config._attn_implementation = {"": _UNMASKED}  # of this one, not of those inside
        yield
    finally:
        handle.remove()
        for config in changed:
            config._attn_implementation = {"": _PLAIN}
