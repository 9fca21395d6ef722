"""Whether a model goes on from kept keys and values as from the text itself.

That is what decoding rests on, and models differ: in windows, in positions, in what they keep of
the past. So the first batch of a run is decoded for a few tokens and compared with whole forwards.
"""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from adazeta.adapters.attach import disable_adapters
from adazeta.forward.decode import Decoding, Start, decode
from adazeta.forward.logits import logits_at
from adazeta.forward.reach import relative_error, roundings
from adazeta.support.batches import padded

_ROWS, _TOKENS = 4, 3


@torch.no_grad()
def check_decoding(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    decoding: Decoding,
    start: Start | None = None,
    *,
    stacked: bool = False,
) -> None:
    """Compare decoding with whole forwards on a few rows: the shortest, the longest, two between.

    Args:
        model: the model, in evaluation mode.
        input_ids: int64 (N, T), padded on the left.
        attention_mask: (N, T).
        decoding: how completions are made.
        start: see :func:`~adazeta.forward.decode.decode`; adapters are left out of the comparison
            then, since a whole forward has them on every token.
        stacked: whether rows are computed in groups with adapters of their own at present. A few
            rows are not all groups, so the adapters are left out then, too.

    Raises:
        ValueError: they differ by more than rounding; the message has the remedy.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"texts are written after a prompt by causal models, and {type(model).__name__} is an "
            "encoder-decoder; train it with a loss"
        )
    order = attention_mask.sum(-1).argsort(stable=True).tolist()
    places = [k * (len(order) - 1) // (_ROWS - 1) for k in range(_ROWS)]
    rows = torch.tensor(sorted({order[k] for k in places}), device=input_ids.device)
    ids, mask = input_ids[rows], attention_mask[rows]
    few = min(decoding.max_new_tokens, _TOKENS)
    plain = replace(decoding, max_new_tokens=few, temperature=0.0, ends=())
    seen: list[Tensor] = []
    with disable_adapters(model) if stacked or start is not None else nullcontext():
        tokens = decode(model, ids, mask, plain, start=start, seen=seen)
        prompts = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        whole = [one + two for one, two in zip(prompts, tokens, strict=True)]
        inputs = {
            "input_ids": padded(whole, 0).to(ids.device),
            "attention_mask": padded([[1] * len(row) for row in whole], 0).to(ids.device),
        }
        where = [(r, len(prompts[r]) - 1 + n) for n in range(few) for r in range(len(prompts))]
        at = torch.tensor(where, device=ids.device)
        expected = logits_at(model, inputs, at[:, 0], at[:, 1])
    found = torch.cat(seen)
    error, accepted = relative_error(found, expected), roundings(found, *model.parameters())
    if error <= accepted:
        return
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    raise ValueError(
        f"texts of this model ({kind}) cannot be written token by token: the logits after kept "
        f"keys and values are others than after the text itself (by {error:.2g} of their spread, "
        f"where {accepted:.2g} is rounding); "
        + ("set adapt='all'" if start is not None else "train with a loss, or another model")
    )
