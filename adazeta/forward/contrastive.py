"""The contrastive loss of R-Adapter, for models that are trained as embeddings.

It is apart from the other losses, as it takes embeddings, and couples the examples of a batch: the
loss of one depends on which others are there. A ``loss_fn`` that uses it says so by an attribute,
``loss_fn.couples_examples = True``; its trainer then takes the mean as one loss of the batch, and
refuses settings that divide a batch or repeat its rows.
"""

import torch
from torch import Tensor
from torch.nn import functional


def multi_positive_margin_nce(
    f: Tensor,
    g: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.01,
    margin: float = 0.05,
    smoothing: float = 0.02,
) -> Tensor:
    """Return the losses MPM-NCE of texts against prompts that say their labels.

    With ``P(i)`` the examples of the label of i, ``S_ij = (f_i g_j + d_ij) / temperature``, where
    ``d_ij`` is 0 for j in ``P(i)`` and else the margin, and targets ``y_ij = (1 - e) / |P(i)|`` for
    j in ``P(i)`` and else ``e / (B - |P(i)|)``::

        loss_i = -1/2 sum_j y_ij (log_softmax(S, over columns)_ij + log_softmax(S, over rows)_ji)

    Source: R-Adapter (arXiv 2408.05749); the defaults are those of its code. With one example a
    label, no margin and no smoothing it is the symmetric InfoNCE.

    Args:
        f: ``(B, d)``, embeddings of the texts, of any length: they are normalised here.
        g: ``(B, d)``, of each text's own prompt.
        labels: integers ``(B,)``.
        temperature: above 0.
        margin: added to the similarity of a text and a prompt of another label.
        smoothing: e, in [0, 1): share of the target that goes to the other labels.

    Returns:
        ``(B,)``, float32 or wider. Differentiable in ``f`` and ``g``.

    Raises:
        ValueError: the shapes do not fit, or a number is out of its range.
    """
    if f.dim() != 2 or f.shape != g.shape or labels.shape != f.shape[:1]:
        raise ValueError(
            f"f and g must be (B, d) and labels (B,), got {tuple(f.shape)}, {tuple(g.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be 0 or more and less than 1, got {smoothing}")
    f, g = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (f, g))
    same = labels[:, None] == labels[None]
    similar = functional.normalize(f, dim=-1) @ functional.normalize(g, dim=-1).T
    scores = torch.where(same, similar, similar + margin) / temperature
    positives = same.sum(-1, keepdim=True)
    others = (len(labels) - positives).clamp(min=1)
    target = torch.where(same, (1 - smoothing) / positives, smoothing / others)
    # Of exp / sum and a logarithm, small temperatures would make NaN or infinity.
    both = scores.log_softmax(1) + scores.log_softmax(0).T
    return -(target * both).sum(-1) / 2
