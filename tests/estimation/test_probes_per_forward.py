import logging

import pytest
import torch

from adazeta import ParameterSpace, QuerySchedule, RandomizedGradientEstimator, ZOAdam
from adazeta.estimation import probes_per_forward
from adazeta.estimation.probes_per_forward import StackSize
from adazeta.support.memory import PeakMemory, available_memory, is_out_of_memory
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.toy import Regression, regression_batch

ROWS, ELEMENTS = 6, 30  # of the batch


class Machine:
    """A forward of which time and memory are given: counts evaluations and moves the clock."""

    def __init__(self, monkeypatch, seconds, mebibytes=None, free=1e6, exact=True):
        self.calls, self.clock, self.peak, self.base = [], 0.0, 0.0, 100.0
        self.seconds, self.mebibytes = seconds, mebibytes or (lambda count: count)
        machine = self

        class Peak:
            before = self.base

            def __enter__(self):
                machine.peak = machine.base
                return self

            def __exit__(self, *error):
                self.mebibytes, self.exact = machine.peak, exact

        monkeypatch.setattr(probes_per_forward, "PeakMemory", Peak)
        monkeypatch.setattr(probes_per_forward, "available_memory", lambda: free)
        monkeypatch.setattr(probes_per_forward.time, "perf_counter", lambda: self.clock)

    def __call__(self, count):
        self.calls.append(count)
        self.clock += self.seconds(count)
        self.peak = max(self.peak, self.base + self.mebibytes(count))
        return torch.ones(ROWS * count)


def measured(machine, limit=40):
    size = StackSize("auto", limit)
    assert size.undecided and size.of(regression_batch()) == 1
    spent = size.measure(regression_batch(), machine, ROWS)
    assert not size.undecided and spent <= sum(machine.calls)
    return size.of(regression_batch())


@pytest.mark.parametrize(
    "seconds, chosen",
    [
        (lambda count: 1.0, 32),  # a GPU that is far from full
        (lambda count: 1.0 * count, 1),  # nothing to win
        (lambda count: 1.0 + 0.003 * count**2, 16),
        (lambda count: max(1.0, count / 4), 4),
        (lambda count: 3.0 * count - 1.0, 1),  # worse
    ],
)
def test_takes_the_fastest_and_of_equals_the_smallest(monkeypatch, seconds, chosen):
    assert measured(Machine(monkeypatch, seconds)) == chosen


@pytest.mark.parametrize(
    "mebibytes, free, chosen",
    [
        (lambda count: 10 * count, 199, 8),  # 80 < half of 199 < 160
        (lambda count: 10 * count, 201, 8),
        (lambda count: 50 + 10 * count, 300, 4),  # 8 might take 180, after what 4 took
        (lambda count: 10 * count, 30, 1),
        (lambda count: 10 * count, None, 4),  # not known
        (lambda count: 10, 1e6, 32),
    ],
)
def test_leaves_half_of_the_free_memory(monkeypatch, mebibytes, free, chosen):
    machine = Machine(monkeypatch, lambda count: 1.0, mebibytes, free)
    assert measured(machine) == chosen
    assert free is None or mebibytes(max(machine.calls)) <= max(free / 2, 10)


def test_is_careful_where_the_peak_cannot_be_measured(monkeypatch):
    assert measured(Machine(monkeypatch, lambda count: 1.0, exact=False)) == 4


def test_running_out_of_memory_ends_the_search(monkeypatch):
    machine = Machine(monkeypatch, lambda count: 1.0)

    def forward(count):
        if count > 4:
            raise torch.OutOfMemoryError("out of memory")
        return machine(count)

    size = StackSize("auto", 40)
    size.measure(regression_batch(), forward, ROWS)
    assert size.of(regression_batch()) == 4


def test_other_errors_and_a_single_evaluation_too_large_are_raised(monkeypatch):
    machine = Machine(monkeypatch, lambda count: 1.0)

    def failing(text, above):
        def forward(count):
            if count > above:
                raise RuntimeError(text)
            return machine(count)

        return forward

    with pytest.raises(RuntimeError, match="device lost"):
        StackSize("auto", 40).measure(regression_batch(), failing("device lost", 1), ROWS)
    with pytest.raises(RuntimeError, match="out of memory"):
        StackSize("auto", 40).measure(regression_batch(), failing("out of memory", 0), ROWS)


def test_never_more_than_a_step_evaluates(monkeypatch):
    machine = Machine(monkeypatch, lambda count: 1.0)
    assert measured(machine, limit=2) == 2 and max(machine.calls) == 2


def test_the_size_of_a_forward_is_what_counts():
    size = StackSize("auto", 40)
    size.load_state_dict({"limit": 40, "elements": 4 * ELEMENTS})
    assert not size.undecided
    assert [size.of(regression_batch(rows)) for rows in (1, 3, 6, 7, 24, 100)] == [
        24,
        8,
        4,
        3,
        1,
        1,
    ]
    assert size.of(None) == 1 and StackSize(7, 40).of(None) == 7


def test_the_choice_is_reported_once(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, logger="adazeta"):
        measured(Machine(monkeypatch, lambda count: max(1.0, count / 4)))
    assert [r.message for r in caplog.records] == [
        "probes_per_forward: 4 for a batch of 30 elements (0.25 s an evaluation; more does not pay)"
    ]


@pytest.mark.parametrize("wanted", [0, -1, "many", 1.5])
def test_bad_numbers_are_named(wanted):
    with pytest.raises(ValueError, match="probes_per_forward"):
        StackSize(wanted, 4)


def estimator_of(model, **options):
    options = {"eps": 1e-2, "check_eps": False, **options}
    return RandomizedGradientEstimator(ParameterSpace(model), **options)


class Limited:
    """Losses that fail where more than so many rows come at once."""

    def __init__(self, model, rows, error=None):
        self.model, self.rows, self.sizes = model, rows, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")

    def __call__(self, batch):
        self.sizes.append(len(batch["y"]))
        if len(batch["y"]) > self.rows:
            raise self.error
        return self.model.losses(batch)


CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(CPU_MESSAGE),
        MemoryError(),
    ],
)
def test_a_stack_that_does_not_fit_falls_back_to_fewer(error, caplog):
    model = Regression()
    expected = estimator_of(model, queries=4)(model.losses, regression_batch())
    before = bits(model)
    estimator = estimator_of(model, queries=4, probes_per_forward=8)
    limited = Limited(model, rows=18, error=error)
    found = estimator(limited, regression_batch())
    assert limited.sizes == [48, 24, 12, 12, 12, 12]
    assert len([r for r in caplog.records if "memory ran out" in r.message]) == 2
    torch.testing.assert_close(found.projected, expected.projected, atol=2e-4, rtol=1e-4)
    assert found.evaluations == 8
    assert_same_bits(model, before)
    caplog.clear()
    limited.sizes.clear()
    estimator(limited, regression_batch(), step=1)
    assert limited.sizes == [12] * 4 and not caplog.records


def test_one_evaluation_that_does_not_fit_is_an_error():
    model = Regression()
    with pytest.raises(torch.OutOfMemoryError):
        estimator_of(model, queries=2, probes_per_forward=4)(Limited(model, 5), regression_batch())
    with pytest.raises(ValueError, match="something else"):
        limited = Limited(model, 6, ValueError("something else"))
        estimator_of(model, queries=2, probes_per_forward=4)(limited, regression_batch())


def test_forwards_of_a_step_are_of_nearly_equal_size():
    model = Regression()
    limited = Limited(model, 1000)
    estimator_of(model, queries=8, probes_per_forward=5)(limited, regression_batch())
    assert limited.sizes == [24, 24, 24, 24]
    limited.sizes.clear()
    estimator_of(model, queries=3, probes_per_forward=4, one_sided=True)(
        limited, regression_batch()
    )
    assert limited.sizes == [24]


@pytest.mark.parametrize("probes", ["batch", "example", 3])
@pytest.mark.parametrize("one_sided", [False, True])
def test_auto_estimates_what_a_fixed_number_does(probes, one_sided, monkeypatch):
    model, batch = Regression(), regression_batch()
    options = {"queries": 4, "probes": probes, "one_sided": one_sided}
    expected = estimator_of(model, **options)(model.losses, batch, step=7)
    monkeypatch.setattr(probes_per_forward.time, "perf_counter", lambda: 0.0)
    estimator = estimator_of(model, **options, probes_per_forward="auto")
    found = estimator(model.losses, batch, step=7)
    assert torch.equal(found.seeds, expected.seeds)
    torch.testing.assert_close(found.projected, expected.projected, atol=2e-4, rtol=1e-4)
    assert found.evaluations > expected.evaluations
    again = estimator(model.losses, batch, step=8)
    assert again.evaluations == expected.evaluations  # measured once


def test_auto_serves_where_nothing_can_be_stacked():
    model, batch = Regression(), regression_batch()
    linear = torch.nn.Linear(5, 1)
    space = ParameterSpace(linear)
    estimator = RandomizedGradientEstimator(space, probes_per_forward="auto", check_eps=False)
    estimator(lambda b: (linear(b["x"])[:, 0] - b["y"]).square(), batch)
    assert estimator.stack.of(batch) == 1
    estimator = estimator_of(model, probes_per_forward="auto", queries=3)
    assert estimator(lambda b: model.losses(b).mean(), batch).evaluations == 6 + 3
    assert estimator.stack.of(batch) == 1
    estimator = estimator_of(model, probes_per_forward="auto")
    assert len(estimator(lambda: model.losses(batch).mean())) == 1


def test_the_queries_may_grow_with_the_epochs():
    model, batch = Regression(), regression_batch()
    schedule = QuerySchedule(1.0, 1.0, 6)
    for wanted in (5, "auto"):
        estimator = estimator_of(model, queries=schedule, probes_per_forward=wanted)
        sequential = estimator_of(model, queries=schedule)
        if wanted == "auto":
            estimator.stack.load_state_dict({"limit": 12, "elements": 5 * ELEMENTS})
        for epoch in (0.0, 1.0, 3.0, 9.0):
            limited = Limited(model, 1000)
            found = estimator(limited, batch, epoch=epoch, step=int(epoch))
            expected = sequential(model.losses, batch, epoch=epoch, step=int(epoch))
            torch.testing.assert_close(found.projected, expected.projected, atol=2e-4, rtol=1e-4)
            assert sum(limited.sizes) == 6 * 2 * found.queries and max(limited.sizes) <= 30


def test_a_resumed_optimizer_computes_in_the_same_groups(monkeypatch):
    batch = regression_batch()

    def optimizer(model):
        return ZOAdam(model, eps=1e-2, queries=4, probes_per_forward="auto", check_eps=False)

    monkeypatch.setattr(probes_per_forward.time, "perf_counter", lambda: 0.0)
    first_model, second_model = Regression(), Regression()
    first, second = optimizer(first_model), optimizer(second_model)
    first.step(first_model.losses, batch)
    first.estimator.stack.elements = 3 * ELEMENTS
    second.load_state_dict(first.state_dict())
    second_model.load_state_dict(first_model.state_dict())
    first.step(first_model.losses, batch)
    limited = Limited(second_model, 1000)
    second.step(limited, batch)
    assert limited.sizes == [18, 18, 12]
    assert_same_bits(second_model, bits(first_model))
    assert first.evaluations == second.evaluations


def test_memory_is_measured(device):
    assert available_memory() > 0
    with PeakMemory() as peak:
        block = torch.ones(64 << 18, device=device)  # 64 MiB
        del block
    assert peak.exact and 60 < peak.mebibytes - peak.before < 200


def test_a_real_failed_allocation_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(OSError())
