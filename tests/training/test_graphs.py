"""Runs whose evaluations are replays of graphs, and the setting that asks for them."""

from types import SimpleNamespace

import pytest
import torch

from adazeta import TTAdapterConfig, ZOTrainer, add_tt_adapters
from adazeta.estimation.graphs import EvaluationGraphs
from adazeta.estimation.perturbed_losses import plain_losses
from adazeta.tasks.prompt import PromptTask
from adazeta.training import graphs
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import CONFIG, arguments, causal_data, class_data
from tests.helpers.tiny_models import tiny_bert_cls, tiny_llama, tiny_tokenizer


def graphed(zo, **options):
    """Give a trainer graphs whose replays run the function again, as a card would be given."""
    estimator = zo.ready_optimizer().estimator
    estimator.evaluator = EvaluationGraphs(
        estimator.space, zo.model, record=lambda run: run, insist=True, **options
    )
    return estimator.evaluator


def adapted(model):
    return add_tt_adapters(model, TTAdapterConfig(**CONFIG))


def run_of(folder, data, model=None, loss_fn=None, data_collator=None, **options):
    given = {} if loss_fn is None else {"loss_fn": loss_fn}
    model = adapted(tiny_llama()) if model is None else model
    args = arguments(folder, max_steps=4, **options)
    return ZOTrainer(model, args, train_dataset=data, data_collator=data_collator, **given)


def prompt_data(task):
    texts = ["it was a good film", "a bad movie", "the plot is dull", "great acting"] * 4
    return [task.encode({"text": text, "label": index % 2}) for index, text in enumerate(texts)]


def prompts():
    task = PromptTask(tiny_tokenizer(), "{text} it was", ["good", "bad"])
    return {
        "data": prompt_data(task),
        "loss_fn": task.losses,
        "data_collator": task.collate,
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"data": causal_data()},
        lambda: {"data": causal_data(), "share_trunk": False, "one_sided": True},
        lambda: {"model": adapted(tiny_bert_cls()), "data": class_data()},
        prompts,
        lambda: {"data": causal_data(), "eps": "auto", "learning_rate": "auto"},
    ],
)
def test_a_run_ends_in_the_bits_of_one_without_graphs(tmp_path, make):
    ends = []
    for name in ("plain", "graphs"):
        zo = run_of(tmp_path / name, **make())
        found = graphed(zo) if name == "graphs" else None
        zo.train()
        ends.append(bits(zo.model))
    assert_same_bits(zo.model, ends[0])
    assert found.problem is None
    assert found.replays > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loss_fn": lambda model, inputs: _mean(model, inputs)}, "not known to read nothing but"),
        ({"cache_trunk": "memory"}, "cache_trunk='memory'"),
    ],
)
def test_what_a_run_computes_may_have_no_graphs(tmp_path, options, problem):
    zo = run_of(tmp_path, data=causal_data(), **options)
    graphed(zo)
    with pytest.raises(ValueError, match=problem):
        zo.train()


def _mean(model, inputs):
    logits = model(input_ids=inputs["input_ids"]).logits
    return logits.float().mean((1, 2)), logits


def test_the_users_loss_is_recorded_where_graphs_are_insisted_on(tmp_path):
    ends = []
    for name in ("plain", "graphs"):
        zo = run_of(tmp_path / name, data=causal_data(), loss_fn=_mean)
        zo.batch_losses.records_any_loss = True
        found = graphed(zo) if name == "graphs" else None
        zo.train()
        ends.append(bits(zo.model))
    assert_same_bits(zo.model, ends[0])
    assert found.replays > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuda_graphs": "maybe"}, "must be 'true', 'false' or 'auto', got 'maybe'"),
        ({"cuda_graphs": "true"}, "needs a CUDA device, and this run is on cpu"),
        ({"cuda_graphs": True}, "needs a CUDA device"),
        ({"cuda_graphs": "true", "perturbation": "in_place"}, "perturbation='in_place'"),
        ({"cuda_graphs": "true", "cache_trunk": "memory"}, "cache_trunk='memory'"),
        ({"cuda_graphs": "true", "bf16": True}, "mixed precision"),
    ],
)
def test_what_does_not_go_with_graphs_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_on_a_cpu_auto_changes_nothing(tmp_path):
    zo = run_of(tmp_path, causal_data(), cuda_graphs="auto")
    assert zo.ready_optimizer().estimator.evaluator is plain_losses


@pytest.mark.parametrize("mode", ["auto", "true"])
def test_on_a_card_an_optimizer_is_given_graphs_once(mode, monkeypatch):
    space = SimpleNamespace(device=torch.device("cuda"))
    estimator = SimpleNamespace(evaluator=plain_losses)
    optimizer = SimpleNamespace(space=space, estimator=estimator)
    losses = SimpleNamespace(records_any_loss=False)
    made = []
    monkeypatch.setattr(graphs, "EvaluationGraphs", lambda *a, **k: made.append((a, k)) or "them")
    args = SimpleNamespace(cuda_graphs=mode, perturbation="auto", cache_trunk="none")
    for _ in range(2):
        graphs.use_graphs(args, optimizer, "model", losses, scored=False)
    assert made == [((space, "model"), {"insist": mode == "true"})]
    assert estimator.evaluator == "them"
    assert losses.records_any_loss == (mode == "true")


def test_scores_have_no_graphs():
    args = SimpleNamespace(cuda_graphs="true", perturbation="auto", cache_trunk="none")
    optimizer = SimpleNamespace(
        space=SimpleNamespace(device=torch.device("cuda")),
        estimator=SimpleNamespace(evaluator=plain_losses),
    )
    with pytest.raises(ValueError, match="are scored"):
        graphs.use_graphs(args, optimizer, None, None, scored=True)
    args.cuda_graphs = "auto"
    graphs.use_graphs(args, optimizer, None, None, scored=True)
    assert optimizer.estimator.evaluator is plain_losses


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["auto", "true"])
def test_a_run_on_a_card_ends_in_the_bits_of_one_without_graphs(tmp_path, mode):
    ends = []
    for name in ("false", mode):
        zo = run_of(tmp_path / name, causal_data(), use_cpu=False, cuda_graphs=name)
        zo.train()
        ends.append(bits(zo.model))
    assert_same_bits(zo.model, ends[0])
    assert zo.zo_optimizer.estimator.evaluator.problem is None
