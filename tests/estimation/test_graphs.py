"""Evaluations that are replays of recorded graphs, and when they are not.

On the CPU a graph is a tape of torch's operations (``tests/helpers/tape.py``), which like a CUDA
graph runs no Python and knows only places in memory. Kernels of other backends, and stacks, whose
reference looks at the seeds, are not on it: there a replay runs the recorded function again.
"""

import logging

import pytest
import torch

from adazeta import ZOSGD, ParameterSpace, TTAdapterConfig, add_tt_adapters
from adazeta.estimation.graphs import EvaluationGraphs
from adazeta.kernels import use_backend
from adazeta.parameters.dropping import Droppable
from tests.helpers.tape import record
from tests.helpers.tiny_models import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:.*lies in the noise")


def again(run):
    """Record nothing: a replay is the function itself."""
    return run


def adapted():
    return add_tt_adapters(tiny_llama(layers=1), TTAdapterConfig(rank=2, init="paper"))


def whole():
    return tiny_llama(layers=1).requires_grad_(True)


def batch(number, rows=2, tokens=6):
    generator = torch.Generator().manual_seed(number)
    return {"input_ids": torch.randint(5, 50, (rows, tokens), generator=generator)}


class Trained:
    """A model, its optimizer and its loss, with or without graphs."""

    def __init__(self, make, recorder=None, most=8, insist=False, **options):
        self.model, self.calls = make(), 0
        options = {"lr": 1e-2, "eps": 1e-2, "queries": 2, "check_eps": False, **options}
        self.optimizer = ZOSGD(self.model, **options)
        self.graphs = None
        if recorder is not None:
            self.graphs = EvaluationGraphs(
                self.optimizer.space, self.model, any_loss=True, record=recorder, most=most,
                insist=insist,
            )  # fmt: skip
            self.optimizer.estimator.evaluator = self.graphs

    def losses(self, given):
        self.calls += 1
        logits = self.model(input_ids=given["input_ids"], use_cache=False).logits
        return logits[:, -1, 7:9].float().logsumexp(-1)

    def steps(self, batches):
        for given in batches:
            self.optimizer.step(self.losses, given)
        return torch.cat([p.detach().flatten() for p in self.optimizer.space.parameters])


def same_bits(make, recorder, batches=None, **options):
    """Train with graphs and without; return the former, once its parameters are the same bits."""
    batches = [batch(number) for number in range(4)] if batches is None else batches
    graphed = Trained(make, recorder, **options)
    assert torch.equal(graphed.steps(batches), Trained(make, **options).steps(batches))
    return graphed


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (adapted, {}),
        (adapted, {"one_sided": True}),
        (whole, {}),
        (whole, {"perturbation": "streamed"}),
        (whole, {"perturbation": "streamed", "distribution": "pairs"}),
    ],
)
def test_replays_have_the_bits_of_plain_evaluations(make, options):
    with use_backend("reference"):
        graphs = same_bits(make, record, **options).graphs
    assert graphs.problem is None
    still = int(options.get("one_sided", False))
    assert graphs.recordings == 1 + still
    # Of each graph the first evaluations of two batches are compared.
    assert graphs.replays == (3 if still else 4) * 4 - 2 * graphs.recordings


@pytest.mark.parametrize(
    "options", [{"probes_per_forward": 2}, {"probes_per_forward": 3}, {"probes": "example"}]
)
def test_stacks_are_graphs_of_their_own(options):
    graphs = same_bits(adapted, again, **options).graphs
    assert graphs.problem is None
    assert graphs.replays > 0


def test_a_replay_runs_no_python():
    with use_backend("reference"):
        graphed = same_bits(adapted, record)
    # Compared twice, run twice to record; the other 14 of 16 evaluations are replays.
    assert graphed.calls == 4


def test_each_shape_has_a_graph_and_the_one_not_used_for_longest_makes_room():
    batches = [batch(n, tokens=tokens) for n, tokens in enumerate((4, 5, 4, 6, 4, 5))]
    graphed = same_bits(adapted, again, batches, most=2)
    assert graphed.graphs.problem is None
    # 4, 5, 6 (5 makes room), and 5 again (6 does).
    assert graphed.graphs.recordings == 4
    assert len(graphed.graphs._graphs) == 2


def test_graphs_are_left_where_every_batch_has_a_shape_of_its_own(caplog):
    batches = [batch(n, tokens=3 + n) for n in range(18)]
    with caplog.at_level(logging.WARNING):
        graphed = same_bits(adapted, again, batches, queries=1)
    assert "pad batches to fewer lengths" in graphed.graphs.problem
    assert graphed.graphs.recordings == 16
    assert len(caplog.records) == 1


def failing(run):
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_recording_that_fails_is_tried_once(caplog):
    tries = []
    with caplog.at_level(logging.WARNING):
        graphed = same_bits(adapted, lambda run: tries.append(1) or failing(run))
    assert len(tries) == 1
    assert [r.message for r in caplog.records] == [
        f"evaluations run without CUDA graphs: {graphed.graphs.problem}"
    ]
    assert "RuntimeError: operation not permitted" in graphed.graphs.problem


@pytest.mark.parametrize("what", ["waits", "shape"])
def test_a_loss_that_looks_at_the_device_falls_back(what):
    class Looking(Trained):
        def losses(self, given):
            found = super().losses(given)
            if what == "waits":
                return found * (2 if float(found.sum()) > 0 else 1)
            chosen = (given["input_ids"] > 20).nonzero(as_tuple=True)
            return found + given["input_ids"][chosen].sum()

    with use_backend("reference"):
        plain, graphed = Looking(adapted), Looking(adapted, record)
        batches = [batch(0), batch(1)]
        assert torch.equal(graphed.steps(batches), plain.steps(batches))
    assert "cannot be recorded" in graphed.graphs.problem


@pytest.mark.parametrize("constant", ["seed", "scale"])
def test_a_graph_that_took_a_seed_or_scale_for_constant_is_found_out(constant, monkeypatch):
    """The first replay is at others than those that were recorded."""
    original, first = ParameterSpace.perturbed, {}

    def baked(self, seed, scale):
        if isinstance(seed, torch.Tensor):
            given = {"seed": seed, "scale": scale}
            given[constant] = first.setdefault(constant, given[constant].clone())
            seed, scale = given.values()
        return original(self, seed, scale)

    monkeypatch.setattr(ParameterSpace, "perturbed", baked)
    graphed = same_bits(adapted, lambda run: run() or run)
    assert graphed.graphs.problem == "a replay differs from the evaluation that it stands for"
    assert graphed.graphs.replays == 0


def test_a_loss_that_reads_more_than_its_batch_is_found_out_at_the_second_batch():
    class Growing(Trained):
        def losses(self, given):
            return super().losses(given) * (1 + self.optimizer.steps)

    with use_backend("reference"):
        plain, graphed = Growing(adapted), Growing(adapted, record)
        batches = [batch(n) for n in range(3)]
        assert torch.equal(graphed.steps(batches), plain.steps(batches))
    assert graphed.graphs.problem == "a replay differs from the evaluation that it stands for"
    assert graphed.graphs.replays == 3  # of the first batch, which were right


@pytest.mark.parametrize("change", ["moved", "mode", "hook", "switch"])
def test_graphs_are_recorded_anew_where_the_model_is_another(change):
    handles = []

    def changed(model):
        if change == "moved":
            model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.clone()
        elif change == "mode":
            model.model.layers[0].train()
        elif change == "hook":
            handles.append(model.model.norm.register_forward_hook(lambda m, args, out: 2 * out))
        else:
            next(m for m in model.modules() if isinstance(m, Droppable)).enabled = False

    ends = []
    with use_backend("reference"):
        for recorder in (record, None):
            trained = Trained(adapted, recorder)
            trained.steps([batch(0), batch(1)])
            changed(trained.model)
            ends.append(trained.steps([batch(2), batch(3)]))
            if recorder:
                assert trained.graphs.problem is None
                assert trained.graphs.recordings == 2
    assert torch.equal(*ends)


def test_the_parameters_may_be_written_to_between_steps():
    ends = []
    with use_backend("reference"):
        for recorder in (record, None):
            trained = Trained(adapted, recorder)
            trained.steps([batch(0), batch(1)])
            for parameter in trained.optimizer.space.parameters:
                parameter.data.mul_(1.5)
            ends.append(trained.steps([batch(1)]))
    assert torch.equal(*ends)


def test_losses_that_are_no_numbers_are_compared_too():
    def broken():
        model = adapted()
        model.lm_head.weight.data[7] = float("nan")
        return model

    with use_backend("reference"):
        graphs = same_bits(broken, record).graphs
    assert graphs.problem is None
    assert graphs.replays == 14


def test_a_batch_that_is_written_to_is_read_again():
    given = batch(0)
    ends = []
    with use_backend("reference"):
        for recorder in (record, None):
            trained = Trained(adapted, recorder)
            for number in range(3):
                given["input_ids"].copy_(batch(number)["input_ids"])
                end = trained.steps([given])
            ends.append(end)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "on cpu, and graphs are of CUDA devices"),
        (
            {"record": again, "space": {"perturbation": "in_place"}},
            "computes its steps on the host",
        ),
        ({"record": again, "drop": 0.5}, "left out at random"),
    ],
)
def test_what_can_have_no_graphs_is_said_at_once(options, message, caplog):
    model = adapted()
    for module in model.modules():
        if isinstance(module, Droppable):
            module.drop = options.get("drop", 0.0)
    space = ParameterSpace(model, **options.get("space", {}))
    arguments = {"record": options.get("record")}
    with caplog.at_level(logging.WARNING):
        assert message in EvaluationGraphs(space, model, **arguments).problem
    assert message in caplog.text
    with pytest.raises(ValueError, match=r"cuda_graphs='auto' or 'false'"):
        EvaluationGraphs(space, model, insist=True, **arguments)
    with pytest.raises(ValueError, match="1 graph or more"):
        EvaluationGraphs(space, model, most=0, **arguments)


def test_a_loss_function_that_does_not_say_what_it_reads_has_no_graph():
    trained = Trained(adapted)
    graphs = EvaluationGraphs(trained.optimizer.space, trained.model, record=again)
    trained.optimizer.estimator.evaluator = graphs
    trained.steps([batch(0)])
    assert graphs.problem == "the loss function does not say what it reads"


def test_where_graphs_are_insisted_on_the_first_objection_is_raised():
    trained = Trained(adapted, failing, insist=True)
    with pytest.raises(ValueError, match="cannot be recorded"):
        trained.steps([batch(0)])
    trained = Trained(adapted, again, insist=True)
    with pytest.raises(ValueError, match="'texts', a list, which is no tensor"):
        trained.steps([{**batch(0), "texts": ["a", "b"]}])


def test_autocast_has_no_graphs():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graphs = same_bits(adapted, again).graphs
    assert "autocast" in graphs.problem


def test_a_loss_without_a_batch_is_evaluated_plainly():
    trained = Trained(adapted, again)
    given = batch(0)
    trained.optimizer.step(lambda: trained.losses(given).mean())
    assert trained.graphs.problem is None
    assert trained.graphs.recordings == 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (adapted, {}),
        (adapted, {"probes_per_forward": 2}),
        (adapted, {"probes": "example"}),
        (whole, {"perturbation": "streamed"}),
        (whole, {"perturbation": "buffer"}),
    ],
)
def test_cuda_graphs_have_the_bits_of_plain_evaluations(make, options):
    def on_card():
        return make().to("cuda")

    batches = [
        {"input_ids": batch(number, tokens=tokens)["input_ids"].to("cuda")}
        for number, tokens in enumerate((6, 6, 9, 6, 9, 6))
    ]
    ends = []
    for graphed in (True, False):
        trained = Trained(on_card, **options)
        if graphed:
            graphs = EvaluationGraphs(trained.optimizer.space, trained.model, any_loss=True)
            trained.optimizer.estimator.evaluator = graphs
        ends.append(trained.steps(batches))
    assert graphs.problem is None
    assert graphs.recordings == 2
    assert torch.equal(*ends)


@pytest.mark.gpu
def test_a_recording_that_fails_on_a_card_leaves_it_usable():
    class Waiting(Trained):
        def losses(self, given):
            found = super().losses(given)
            return found * (2 if float(found.sum()) > 0 else 1)

    trained = Waiting(lambda: adapted().to("cuda"))
    graphs = EvaluationGraphs(trained.optimizer.space, trained.model, any_loss=True)
    trained.optimizer.estimator.evaluator = graphs
    end = trained.steps([{"input_ids": batch(n)["input_ids"].to("cuda")} for n in range(3)])
    assert "cannot be recorded" in graphs.problem
    plain = Waiting(lambda: adapted().to("cuda"))
    batches = [{"input_ids": batch(n)["input_ids"].to("cuda")} for n in range(3)]
    assert torch.equal(end, plain.steps(batches))
