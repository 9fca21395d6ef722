"""Evaluations of batches, taken apart and recorded: they have the bits of plain ones."""

import pytest
import torch

from adazeta import ZOSGD, TTAdapterConfig, add_tt_adapters
from adazeta.estimation.findings import Findings
from adazeta.estimation.graphs import EvaluationGraphs
from adazeta.forward.batch_losses import BatchLosses
from adazeta.forward.losses import example_losses
from adazeta.forward.trained_loss import TrainedLoss
from adazeta.kernels import use_backend
from tests.helpers.tape import record
from tests.helpers.tiny_models import tiny_llama

LENGTHS = (8, 3, 4, 5)


def adapted(layers):
    config = TTAdapterConfig(rank=2, init="paper", **({"layers": layers} if layers else {}))
    return add_tt_adapters(tiny_llama(), config).eval()


def batch(number, padded):
    ids = torch.randint(5, 50, (4, 8), generator=torch.Generator().manual_seed(number))
    lengths = torch.tensor(LENGTHS if padded else (8,) * 4)
    mask = (torch.arange(8) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), -100)}


def losses_of(model, **options):
    return BatchLosses(model, TrainedLoss(example_losses, None, compare=False), **options)


@pytest.mark.parametrize("layers", [None, "last:1"])
@pytest.mark.parametrize(
    ("padded", "padding_free"), [(False, False), (True, False), (True, "auto")]
)
def test_replays_have_the_bits_of_plain_evaluations(layers, padded, padding_free):
    ends = []
    with use_backend("reference"):
        for graphed in (True, False):
            model = adapted(layers)
            optimizer = ZOSGD(model, lr=1e-2, eps=1e-2, check_eps=False)
            losses = losses_of(model, padding_free=padding_free)
            if graphed:
                graphs = EvaluationGraphs(optimizer.space, model, record=record)
                optimizer.estimator.evaluator = graphs
            for number in range(3):
                given = batch(number, padded)
                found = losses.of(model, given, optimizer.estimator.findings)
                optimizer.step(found, given)
            ends.append([p.detach().clone() for p in optimizer.space.parameters])
    assert graphs.problem is None
    assert (graphs.recordings, graphs.replays) == (1, 4)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@torch.no_grad()
def test_what_is_read_is_told_apart_from_what_is_computed():
    model, found = adapted("last:1"), Findings()
    losses = losses_of(model)
    names = []
    for padded in (True, False):
        given = batch(0, padded)
        evaluation = losses.of(model, given, found)
        expected = evaluation(given)
        parts = evaluation.recordable(given, 1)
        assert torch.equal(parts.compute(parts.tensors), expected)
        assert parts.whole is not padded
        names.append(set(parts.tensors))
    always = {"batch input_ids", "batch attention_mask", "batch labels", "hidden"}
    places = {"place row", "place column"}
    layout = {"packing line", "packing start", "packing source", "packing positions"}
    assert names == [always | places | layout, always | places]


@torch.no_grad()
def test_what_cannot_be_recorded_says_why():
    model, given = adapted(None), batch(0, False)

    def reason(inputs=given, gives="losses", loss=None, **options):
        losses = losses_of(model, **options)
        if loss is not None:
            losses.loss = loss
        return losses.of(model, given, Findings(), gives=gives).recordable(inputs, 1)

    def own(module, inputs):
        return example_losses(module, inputs)

    assert "logits" in reason(gives="logits")
    assert "cache_trunk='memory'" in reason(cache="memory")
    assert "not known" in reason(loss=TrainedLoss(own, None, compare=False))
    assert "'texts', a list" in reason({**given, "texts": ["a"] * 4})
    assert not isinstance(reason({**given, "count": 3}), str)
