import copy

import pytest
import torch
from torch import nn

from adazeta import ZOSGD, ParameterSpace, ZOAdam
from adazeta.kernels import gaussian
from tests.toy import Regression, assert_same_bits, bits, regression_batch

RULES = {
    "sgd": lambda p, **kw: ZOSGD(p, lr=0.02, eps=1e-2, **kw),
    "momentum": lambda p, **kw: ZOSGD(p, lr=0.01, momentum=0.9, eps=1e-2, **kw),
    "decay": lambda p, **kw: ZOSGD(p, lr=0.01, momentum=0.5, weight_decay=0.1, eps=1e-2, **kw),
    "adam": lambda p, **kw: ZOAdam(p, lr=0.02, weight_decay=0.01, eps=1e-2, **kw),
    "adam-element": lambda p, **kw: ZOAdam(p, lr=0.02, second_moment="element", eps=1e-2, **kw),
}


def noise(seed, space):
    z = gaussian(int(seed), 0, space.size)
    return [
        z[o : o + p.numel()].view(p.shape)
        for p, o in zip(space.parameters, space.offsets, strict=True)
    ]


class SlowReference:
    """The update rules as their equations read, one parameter and one probe at a time."""

    def __init__(self, optimizer):
        self.group = optimizer.param_groups[0]
        self.space = optimizer.space
        self.theta = [p.detach().clone() for p in self.space.parameters]
        self.m = [torch.zeros_like(p) for p in self.theta]
        self.v = [torch.zeros_like(p) for p in self.theta]
        self.t = 0

    def step(self, probes):
        group, lr, wd = self.group, self.group["lr"], self.group["weight_decay"]
        g = [torch.zeros_like(p) for p in self.theta]
        for seed, c in zip(probes.seeds, probes.coefficients, strict=True):
            for total, z in zip(g, noise(seed, self.space), strict=True):
                total += c * z
        self.t += 1
        for k, theta in enumerate(self.theta):
            if "momentum" in group:
                self.m[k] = group["momentum"] * self.m[k] + g[k]
                direction = self.m[k]
            else:
                b1, b2 = group["betas"]
                square = g[k] ** 2
                if group["second_moment"] == "tensor":
                    square = square.mean().expand_as(square)
                self.m[k] = b1 * self.m[k] + (1 - b1) * g[k]
                self.v[k] = b2 * self.v[k] + (1 - b2) * square
                m_hat, v_hat = self.m[k] / (1 - b1**self.t), self.v[k] / (1 - b2**self.t)
                direction = m_hat / (v_hat.sqrt() + group["epsilon"])
            self.theta[k] = (1 - lr * wd) * theta - lr * direction


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_slow_reference_for_100_steps(rule):
    model, batch = Regression(), regression_batch()
    optimizer = RULES[rule](model, queries=3, check_eps=False)
    reference = SlowReference(optimizer)
    for _ in range(100):
        optimizer.step(model.losses, batch)
        reference.step(optimizer.last)
    for parameter, theta in zip(model.parameters(), reference.theta, strict=True):
        # Same terms, other order of a few float32 operations, 100 times over.
        torch.testing.assert_close(parameter.detach(), theta, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("rule", RULES)
def test_converges(rule):
    model, batch = Regression(), regression_batch(16)
    optimizer = RULES[rule](model, probes="example", probes_per_forward=2, check_eps=False)
    before = model.losses(batch).mean().item()
    losses = [optimizer.step(model.losses, batch) for _ in range(200)]
    assert losses[-1] < 0.25 * before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_resumed_run_is_the_same_run_bit_for_bit(rule):
    batch = regression_batch()

    def run(steps, model, optimizer):
        for _ in range(steps):
            optimizer.step(model.losses, batch)

    model = Regression()
    optimizer = RULES[rule](model, queries=2, seed=8)
    run(5, model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    run(5, model, optimizer)

    fresh = Regression()
    resumed = RULES[rule](fresh, queries=2, seed=8)
    fresh.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    run(5, fresh, resumed)
    assert_same_bits(fresh, bits(model))
    assert resumed.steps == 10 and resumed.evaluations == optimizer.evaluations


def test_eps_auto_is_part_of_the_state():
    model, batch = Regression(), regression_batch()
    optimizer = ZOSGD(model, lr=1e-3, eps="auto")
    optimizer.step(model.losses, batch)
    twin = Regression()
    resumed = ZOSGD(twin, lr=1e-3, eps="auto")
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.estimator.eps == optimizer.estimator.eps is not None
    resumed.step(twin.losses, batch)
    assert resumed.last.evaluations == 2


def test_plain_loop_with_a_closure_and_a_scheduler():
    model = nn.Linear(4, 1)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    optimizer = ZOSGD(model.parameters(), lr=0.1, queries=4, eps=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=60)
    before = nn.functional.mse_loss(model(x), y).item()
    for _ in range(60):
        loss = optimizer.step(lambda: nn.functional.mse_loss(model(x), y))
        scheduler.step()
    assert loss < 0.9 * before
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_micro_batches_equal_one_batch():
    batch = regression_batch(8)
    whole, parts = Regression(), Regression()
    one = ZOSGD(whole, lr=0.1, queries=2, eps=1e-2, check_eps=False)
    two = ZOSGD(parts, lr=0.1, queries=2, eps=1e-2, check_eps=False)
    one.step(whole.losses, batch)
    for half in (slice(0, 4), slice(4, 8)):
        two.accumulate(parts.losses, {name: value[half] for name, value in batch.items()})
    assert two.step() is None
    assert len(two.last) == 2 and two.steps == 1
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_parameter_groups_have_their_own_rates():
    model, batch = Regression(), regression_batch()
    space = ParameterSpace(model)
    groups = [
        {"params": list(model.first.parameters()), "lr": 0.0},
        {"params": list(model.second.parameters())},
    ]
    frozen, moved = bits(model.first), bits(model.second)
    optimizer = ZOSGD(groups, lr=0.1, space=space, eps=1e-2, probes="example")
    optimizer.step(model.losses, batch)
    assert_same_bits(model.first, frozen)
    changed = [not torch.equal(p, b) for p, b in zip(model.second.parameters(), moved, strict=True)]
    assert all(changed)


def test_all_losses_bad_skips_the_step():
    model = Regression()
    before = bits(model)
    optimizer = ZOAdam(model, lr=0.1, eps=1e-2, check_eps=False)
    loss = optimizer.step(lambda batch: model.losses(batch) * float("nan"), regression_batch())
    assert loss != loss
    assert_same_bits(model, before)
    assert optimizer.last.dropped == 1


def test_an_exception_in_the_loss_changes_nothing():
    model = Regression()
    before = bits(model)
    optimizer = ZOAdam(model, lr=0.1, eps=1e-2)

    def broken(batch):
        raise RuntimeError("broken batch")

    with pytest.raises(RuntimeError, match="broken batch"):
        optimizer.step(broken, regression_batch())
    assert_same_bits(model, before)
    optimizer.step(model.losses, regression_batch())
    assert optimizer.steps == 1


def test_bfloat16_parameters_keep_float32_state():
    model = nn.Linear(6, 1, dtype=torch.bfloat16)
    x = torch.randn(8, 6, dtype=torch.bfloat16)
    optimizer = ZOSGD(model, lr=0.01, momentum=0.9, eps=1e-1, check_eps=False)
    for _ in range(3):
        optimizer.step(lambda: model(x).float().square().mean())
    twin = ZOSGD(nn.Linear(6, 1, dtype=torch.bfloat16), lr=0.01, momentum=0.9, eps=1e-1)
    twin.load_state_dict(optimizer.state_dict())
    for mine, loaded in zip(optimizer.state.values(), twin.state.values(), strict=True):
        assert loaded["momentum_buffer"].dtype == torch.float32
        assert torch.equal(loaded["momentum_buffer"], mine["momentum_buffer"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: ZOSGD(p, lr=-1.0), "lr"),
        (lambda p: ZOSGD(p, momentum=1.0), "momentum"),
        (lambda p: ZOSGD(p, weight_decay=-0.1), "weight_decay"),
        (lambda p: ZOAdam(p, betas=(0.9, 1.0)), "betas"),
        (lambda p: ZOAdam(p, epsilon=-1.0), "epsilon"),
        (lambda p: ZOAdam(p, second_moment="row"), "second_moment"),
    ],
)
def test_bad_hyper_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(Regression())


def test_foreign_optimizer_state_is_refused():
    model = Regression()
    foreign = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match="zeroth_order"):
        ZOSGD(Regression(), lr=0.1).load_state_dict(foreign)


def test_step_without_estimate_names_the_remedy():
    with pytest.raises(ValueError, match="accumulate"):
        ZOSGD(Regression(), lr=0.1).step()
