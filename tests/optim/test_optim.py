import copy

import pytest
import torch
from torch import nn

from adazeta import ZOSGD, ParameterSpace, ZOAdam
from adazeta.kernels import gaussian
from adazeta.optim import adam, sgd
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.toy import Regression, regression_batch

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
                if group["second_moment"] == "scalar":
                    square = torch.full_like(square, probes.coefficients.square().sum().item())
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


@pytest.mark.parametrize("rule", RULES)
def test_an_exception_in_a_later_micro_batch_drops_the_whole_step(rule):
    model, batch = Regression(), regression_batch()
    optimizer = RULES[rule](model, queries=2, check_eps=False)
    twin_model = Regression()
    twin = RULES[rule](twin_model, queries=2, check_eps=False)

    def broken(batch):
        raise KeyboardInterrupt

    optimizer.accumulate(model.losses, regression_batch(4))
    with pytest.raises(KeyboardInterrupt):
        optimizer.accumulate(broken, batch)
    with pytest.raises(ValueError, match="accumulate"):
        optimizer.step()
    optimizer.step(model.losses, batch)
    twin.step(twin_model.losses, batch)
    assert torch.equal(optimizer.last.coefficients, twin.last.coefficients)
    assert_same_bits(model, bits(twin_model))


class Mixed(nn.Module):
    """Three layers of three dtypes; the parameters of one dtype do not lie together."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for index, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
            values = torch.randn(11 + index, generator=generator).to(dtype)
            self.register_parameter(f"p{index}", nn.Parameter(values))
            self.register_parameter(f"q{index}", nn.Parameter(values.float().clone()))

    def forward(self) -> torch.Tensor:
        return sum(parameter.float().square().sum() for parameter in self.parameters())


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("rule", RULES)
def test_groups_and_dtypes_are_updated_alike_however_they_are_cut(rule, rounding):
    whole, cut = Mixed(), Mixed()
    one = RULES[rule](whole, queries=2, rounding=rounding, check_eps=False)
    named = dict(cut.named_parameters())
    groups = [{"params": [named[n] for n in names]} for names in (("q2", "p1"), ("p0", "q0"))]
    groups.append({"params": [p for n, p in named.items() if n in ("q1", "p2")], "lr": 0.5})
    two = RULES[rule](
        groups, space=ParameterSpace(cut), queries=2, rounding=rounding, check_eps=False
    )
    before = cut.p2.detach().clone()
    for _ in range(3):
        one.step(whole)
        two.step(cut)
        # The third group has another rate, so the losses part; go on from the same point.
        for (name, p), q in zip(whole.named_parameters(), cut.parameters(), strict=True):
            assert name in ("q1", "p2") or torch.equal(p, q), name
            q.data.copy_(p)
    assert not torch.equal(before, cut.p2)


def test_stochastic_rounding_differs_by_step_and_by_run():
    def train(seed, steps=2):
        model = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
        model.weight.data.fill_(1.0)
        optimizer = ZOSGD(model, lr=1.0, eps=1e-2, check_eps=False, seed=seed)
        changed = []
        for _ in range(steps):
            before = model.weight.detach().clone()
            probes = optimizer.estimator(lambda: model.weight.float().sum(), step=0)
            probes.coefficients.fill_(1e-4)
            optimizer._pending = [probes]
            optimizer.step()
            changed.append(model.weight.detach() != before)
        return changed

    first, again, other = train(1), train(1), train(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert 20 < first[0].sum() < 1000 and 20 < first[1].sum() < 1000
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


def test_stochastic_rounding_trains_where_nearest_loses_the_updates():
    def train(rounding):
        model = nn.Linear(32, 1, bias=False, dtype=torch.bfloat16)
        model.weight.data.fill_(1.0)
        optimizer = ZOSGD(model, lr=1e-4, eps=0.3, rounding=rounding, queries=8, check_eps=False)
        for _ in range(20):
            optimizer.step(lambda: model.weight.float().sum())
        return model.weight.float().mean().item()

    # The gradient is 1 everywhere: 20 steps of 0.0001 in a format whose spacing is 0.0039 below 1.
    assert train("nearest") == 1.0
    assert 0.996 < train("stochastic") < 0.9995


def test_the_scalar_second_moment_is_kept_in_the_group_and_resumed():
    model, batch = Regression(), regression_batch()
    optimizer = ZOAdam(model, lr=0.02, queries=3, eps=1e-2, check_eps=False)
    variance = 0.0
    for _ in range(3):
        optimizer.step(model.losses, batch)
        square = optimizer.last.coefficients.double().square().sum()
        variance = 0.999 * variance + (1 - 0.999) * square
    group = optimizer.param_groups[0]
    assert group["updates"] == 3 and group["variance"] == pytest.approx(variance.item(), rel=1e-12)
    assert all(set(state) == {"exp_avg"} for state in optimizer.state.values())
    resumed = ZOAdam(Regression(), lr=0.02)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["variance"] == group["variance"]
    assert resumed.param_groups[0]["updates"] == 3


@pytest.mark.parametrize("rule", RULES)
def test_an_update_is_one_op_whatever_the_number_of_parameters(rule, monkeypatch):
    calls = []
    ops = [(sgd, "add_noise_"), (sgd, "momentum_update_"), (adam, "adam_update_")]
    for module, name in ops:
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=whole, **k: (calls.append(1), _f(*a, **k)))
    model = Mixed()
    optimizer = RULES[rule](model, check_eps=False)
    optimizer.step(model)
    assert len(calls) == 1


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
        (lambda p: ZOSGD(p, rounding="up"), "rounding"),
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
