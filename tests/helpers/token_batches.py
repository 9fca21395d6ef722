"""Batches of tokens, and what runs a model on them."""

import torch

from adazeta.adapters.attached import attached_adapters
from adazeta.forward.decode import Decoding, decode
from adazeta.forward.losses import example_losses
from tests.helpers.tiny_models import PAD

PROMPTS = [[7, 9, 20, 31], [12], [44, 5, 6], [30, 31, 32, 33, 34]]
# The end token of these models never comes; words that do end completions at different lengths.
ENDS = tuple(range(5, 25))
LENGTHS = [9, 7, 3, 8]


def left(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def check_members_write_as_alone(model, space, states):
    """Eight members complete the prompts, those of one side after those of the other."""
    ids, mask = left(PROMPTS)
    seeds, scales = torch.arange(8), torch.tensor([0.5] * 4 + [-0.5] * 4)
    with space.stacked(seeds, scales):
        found = decode(
            model, ids.repeat(2, 1), mask.repeat(2, 1), Decoding(8, ends=ENDS), groups=8,
            keep_groups=space.keep_groups, start=states,
        )  # fmt: skip
    expected = []
    for index in range(8):
        with space.perturbed(index, float(scales[index])):
            expected += decode(
                model, *left([PROMPTS[index % 4]]), Decoding(8, ends=ENDS), start=states
            )
    assert found == expected


def prompts():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 60, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, mask


def on_last_tokens_only(model, count):
    """Let the adapters leave all but the last tokens as they are, the obvious way."""

    def keep_others(_, args, output):
        where = torch.zeros(output.shape[-2], 1, dtype=torch.bool)
        where[-count:] = True
        return torch.where(where, output, args[0])

    return [a.register_forward_hook(keep_others) for _, a in attached_adapters(model)]


def batch(rows=3, tokens=7, lengths=None, classes=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths or []):
        mask[row, length:] = 0
    ids = ids.where(mask.bool(), 0)
    labels = torch.arange(rows) % 2 if classes else ids.where(mask.bool(), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses_of(model):
    return lambda inputs: example_losses(model, inputs)[0]


def everything_of(model):
    """All logits too: nothing that sharing might change goes unseen."""
    return lambda inputs: example_losses(model, inputs)
