"""How often a step makes the host wait for the device before its losses are on their way."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adazeta import ZOSGD, TTAdapterConfig, add_tt_adapters
from adazeta.forward.losses import losses_only
from tests.helpers.tiny_models import tiny_llama
from tests.helpers.waits import host_waits


def asked_by_transformers():
    """Say whether the nearest caller outside of torch and this file is transformers' code."""
    frame = sys._getframe(1)
    while frame.f_globals["__name__"].split(".")[0] == "torch" or frame.f_globals is globals():
        frame = frame.f_back
    return frame.f_globals["__name__"].split(".")[0] == "transformers"


class Waits(TorchDispatchMode):
    """Lists our operations that wait while :attr:`open`, among them indexing by a mask."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], True

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if self.open and host_waits(operation, args) and not asked_by_transformers():
            self.found.append(operation)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(("together", "expected"), [(1, 2), (2, 1)])
def test_an_evaluation_waits_once_to_find_the_labelled_tokens(monkeypatch, together, expected):
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(rank=2, init="paper"))
    ids = torch.arange(12).reshape(2, 6) + 5
    batch = {"input_ids": ids, "labels": ids.clone().index_fill_(1, torch.arange(2), -100)}
    optimizer = ZOSGD(
        model, lr=1e-3, eps=1e-2, queries=1, check_eps=False, probes_per_forward=together
    )
    calls = []

    def losses(batch):
        found = losses_only(model, batch)
        calls.append(1)
        waits.open = waits.open and len(calls) < 2 // together
        return found

    def tensor(*arguments, device=None, **options):
        assert device is None  # a list is copied to the device, and the host waits for that
        return make(*arguments, **options)

    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", tensor)
    with Waits() as waits:
        waits.open = False
        optimizer.step(losses, batch)  # fills what is kept
        calls.clear()
        waits.open = True
        optimizer.step(losses, batch)
    assert waits.found == [torch.ops.aten.nonzero.default] * expected
