"""The methods by name: their equations, convergence, resuming, and what the table states."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from adazeta import HELENE, METHODS, ParameterSpace, make_optimizer
from adazeta.cli import main
from adazeta.kernels import gaussian, rademacher
from adazeta.methods import method_named
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.slow_rules import (
    SlowAdaLomo,
    SlowAdam,
    SlowExtrapolated,
    SlowFZOO,
    SlowHELENE,
    SlowMeZO,
    SlowMomentum,
    SlowSign,
)
from tests.helpers.toy import Regression, regression_batch

DRAWS = {"gaussian": gaussian, "rademacher": rademacher}
# name: method, its settings, learning rate of the regression, the slow rule, and whether the order
# of the float32 operations is the same, so that the bits are.
RULES = {
    "mezo": ("mezo", {}, 0.02, SlowMeZO, True),
    "zo-momentum": ("zo-momentum", {}, 0.01, SlowMomentum, True),
    "zo-sign": ("zo-sign", {}, 0.01, SlowSign, True),
    "zo-adam": ("zo-adam", {}, 0.02, SlowAdam, False),
    "fzoo": ("fzoo", {}, 0.1, SlowFZOO, False),
    "zo-adalomo": ("zo-adalomo", {}, 0.05, SlowAdaLomo, False),
    "zo-extrapolated": ("zo-extrapolated", {}, 0.02, SlowExtrapolated, False),
    "helene": ("helene", {}, 0.02, SlowHELENE, False),
    "helene-paper": (
        "helene", {"hessian": "element", "hessian_every": 2, "floor": 0.3, "quantile": 0.0,
                   "annealing": 50}, 0.005, SlowHELENE, False,
    ),
    "helene-quantile": ("helene", {"hessian": "element", "gamma": 2.0}, 0.02, SlowHELENE, False),
    "helene-annealing": ("helene", {"hessian": "none"}, 0.005, SlowHELENE, False),
    "helene-window": (
        "helene", {"hessian": "element", "hessian_every": 2, "state": "window", "window": 200,
                   "floor": 0.3}, 0.005, SlowHELENE, False,
    ),
}  # fmt: skip


def made(case, model, **options):
    method, settings, lr, _, _ = RULES[case]
    options = {"eps": 1e-2, "check_eps": False, "queries": 3, "seed": 4, **options}
    return make_optimizer(model, method, lr=lr, method_settings=settings, **options)


def vector(space, tensors):
    """Tensors of the parameters as one vector over the index space, the padding included."""
    whole = torch.zeros(space.size)
    for offset, tensor in zip(space.offsets, tensors, strict=True):
        whole[offset : offset + tensor.numel()] = tensor.detach().flatten()
    return whole


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("case", RULES)
def test_equals_the_slow_reference_for_100_steps(case, decay):
    method, settings, lr, slow, same_bits = RULES[case]
    model, batch = Regression(), regression_batch()
    optimizer = made(case, model, weight_decay=decay)
    space = optimizer.space
    parts = [(o, o + p.numel()) for o, p in zip(space.offsets, space.parameters, strict=True)]
    extra = {"layers": parts, **settings} if slow in (SlowHELENE, SlowAdaLomo) else {}
    for name in ("state", "window"):
        extra.pop(name, None)
    reference = slow(
        vector(space, model.parameters()), lr,
        lambda seed: DRAWS[space.distribution](int(seed), 0, space.size), 1 - lr * decay, **extra,
    )  # fmt: skip
    for _ in range(100):
        optimizer.step(model.losses, batch)
        reference.follow(optimizer.last.seeds, optimizer.last.projected)
        for (begin, end), parameter in zip(parts, space.parameters, strict=True):
            expected, found = reference.theta[begin:end], parameter.detach().flatten()
            if same_bits:
                assert torch.equal(found, expected)
            else:
                # The same terms, but products of scalars are rounded once, and elsewhere.
                torch.testing.assert_close(found, expected, atol=3e-5, rtol=3e-5)


class Quadratic(nn.Module):
    """``(1/2) sum_i a_i (theta_i - 1)^2`` with curvatures from 0.2 to 2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(21))
        self.register_buffer("a", torch.linspace(0.2, 2.0, 21))

    def forward(self) -> torch.Tensor:
        return 0.5 * (self.a * (self.theta - 1).square()).sum()


class Logistic(nn.Module):
    """Logistic regression on two Gaussian clouds, with the norm of the weights held."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        labels = (torch.arange(64) % 2).float()
        points = torch.randn(64, 7, generator=generator) + 1.5 * (2 * labels[:, None] - 1)
        self.register_buffer("x", points)
        self.register_buffer("y", labels)
        self.weight, self.bias = nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(1))

    def forward(self) -> torch.Tensor:
        logits = self.x @ self.weight + self.bias
        loss = nn.functional.binary_cross_entropy_with_logits(logits, self.y)
        return loss + 0.01 * self.weight.square().sum()


RATES = {
    "mezo": (0.03, 0.3),
    "zo-momentum": (0.004, 0.05),
    "zo-sign": (0.02, 0.03),
    "zo-adam": (0.05, 0.05),
    "zo-conservative": (0.05, 0.5),
    "fzoo": (0.1, 0.1),
    "helene": (0.1, 0.003),
    "zo-adalomo": (30.0, 30.0),
    "zo-extrapolated": (0.03, 0.2),
}


@pytest.mark.parametrize("problem", [Quadratic, Logistic])
@pytest.mark.parametrize("method", RATES)
def test_converges(method, problem):
    model = problem()
    rate = RATES[method][problem is Logistic]
    options = {} if method == "fzoo" else {"queries": 2}
    optimizer = make_optimizer(model, method, lr=rate, eps=1e-3, check_eps=False, **options)
    before = model().item()
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / 400)
        optimizer.step(model)
    assert model().item() < (0.05 if problem is Quadratic else 0.25) * before


@pytest.mark.parametrize("case", [*RULES, "zo-conservative", "helene-bfloat16"])
def test_resumed_run_is_the_same_run_bit_for_bit(case):
    settings = (
        {"momentum": 0.5}
        if case == "zo-conservative"
        else {"hessian": "element", "state": "bfloat16"}
    )

    def make(model):
        if case in RULES:
            return made(case, model)
        return make_optimizer(
            model,
            case.split("-bf")[0],
            lr=0.05,
            method_settings=settings,
            eps=1e-2,
            check_eps=False,
        )

    def run(steps, model, optimizer):
        for _ in range(steps):
            optimizer.step(model.losses, regression_batch())

    model = Regression()
    optimizer = make(model)
    run(13, model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    run(12, model, optimizer)
    fresh = Regression()
    resumed = make(fresh)
    fresh.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    run(12, fresh, resumed)
    assert_same_bits(fresh, bits(model))


def state_bytes(optimizer):
    """Bytes of tensors that the optimizer holds, each memory once."""
    tensors = [*optimizer.buffers.values()]
    tensors += [t for values in optimizer.state.values() for t in values.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in RATES),
        ("zo-adam", {"second_moment": "element"}),
        ("zo-conservative", {"momentum": 0.9}),
        *(("helene", {"hessian": h, "state": s})
          for h in ("element", "scalar", "none") for s in ("float32", "bfloat16", "window")),
    ],
)  # fmt: skip
def test_the_state_is_as_large_as_stated(name, settings):
    model = Regression()
    optimizer = make_optimizer(
        model, name, lr=1e-3, method_settings=settings, eps=1e-2, check_eps=False
    )
    for _ in range(2):
        optimizer.step(model.losses, regression_batch())
    assert state_bytes(optimizer) == METHODS[name].state_bytes(optimizer.space.size, settings)


@pytest.mark.parametrize("queries", [2, 5])
@pytest.mark.parametrize("name", RATES)
def test_a_step_takes_as_many_forwards_as_stated(name, queries):
    model = Regression()
    optimizer = make_optimizer(model, name, lr=1e-3, queries=queries, eps=1e-2, check_eps=False)
    calls = []
    optimizer.step(lambda batch: (calls.append(1), model.losses(batch))[1], regression_batch())
    assert len(calls) == optimizer.evaluations == METHODS[name].forwards(queries)


@pytest.mark.parametrize("name", RATES)
def test_a_step_takes_as_many_passes_as_stated(name, monkeypatch):
    from adazeta.optim import conservative
    from adazeta.optim import optimizer as engine
    from adazeta.parameters import buffered

    passes = []

    def counted(module, name):
        whole = getattr(module, name)

        def wrapper(*a, **k):
            passes.append(1)
            return whole(*a, **k)

        monkeypatch.setattr(module, name, wrapper)

    model = Quadratic()
    optimizer = make_optimizer(model, name, lr=1e-3, eps=1e-2, check_eps=False)
    counted(buffered, "add_noise_")
    counted(engine.ZerothOrderOptimizer, "move")
    restore = conservative.restore
    monkeypatch.setattr(conservative, "restore", lambda *a: (passes.append(1), restore(*a)))
    optimizer.step(model)
    copies = 1 if METHODS[name].more_forwards else 0
    assert len(passes) + copies == METHODS[name].passes()


def test_the_table_is_printed(capsys):
    assert main(["methods", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(METHODS)
    assert rows["mezo"]["state_bytes"] == 0 and rows["fzoo"]["forwards"] == 9
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(method.paper in shown for method in METHODS.values())


def test_defaults_in_the_table_are_those_of_the_rules():
    for name, method in METHODS.items():
        if not method.own:
            continue
        plain = method.rule(Regression(), lr=0.1, queries=2)
        group = make_optimizer(Regression(), name, lr=0.1, queries=2).param_groups[0]
        for key, value in method.own.items():
            assert group[key] == value
            # What differs from the rule's own default is what makes the method.
            changed = plain.param_groups[0][key] != value
            assert changed == (key == "momentum" and name in ("zo-momentum", "lozo-m"))


def test_fields_of_training_arguments_have_the_default_of_the_setting_they_give():
    fields = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    taking = {name: method for name, method in METHODS.items() if method.takes}
    assert "zo-adam" in taking
    for method in taking.values():
        assert method.taken(SimpleNamespace(**fields), None) == {
            name: method.own[name] for name in method.takes
        }
        assert method.taken(SimpleNamespace(**fields), dict(method.own)) == {}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hellene", {}, "did you mean 'helene'"),
        ("sophia", {}, "there are: mezo"),
        ("mezo", {"momentum": 0.9}, "there are: none"),
        ("helene", {"hesian": "none"}, "did you mean 'hessian'"),
        ("helene", {"hessian": "full"}, "hessian must be one of"),
        ("helene", {"state": "int8"}, "state must be one of"),
        ("helene", {"hessian_every": 0}, "hessian_every must be 1"),
        ("helene", {"gamma": 0.0}, "gamma must be above 0"),
        ("helene", {"quantile": 1.5}, "quantile must be in"),
        ("helene", {"betas": [0.9, 1.0]}, "betas must be in"),
        ("helene", {"floor": -1.0}, "floor must be 0 or more"),
        ("zo-adalomo", {"floor": -1.0}, "floor must be 0 or more"),
        ("zo-extrapolated", {"extrapolation": float("inf")}, "extrapolation must be finite"),
        ("zo-adalomo", {"clip": 0.0}, "clip must be above 0"),
        ("zo-adalomo", {"decay_rate": 0.8}, "decay_rate must be below 0"),
        ("zo-extrapolated", {"extrapolation": "x"}, "'extrapolation' of the method must be int or"),
        ("subzero", {"vectors": "perhaps"}, "'vectors' of the method must be bool"),
        ("helene", {"state": 5}, "'state' of the method must be a word such as 'float32'"),
    ],
)
def test_bad_names_and_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(Regression(), name, lr=0.1, method_settings=settings)


def test_words_of_yaml_are_read_as_what_a_setting_is():
    found = method_named("subzero").with_settings({"vectors": "no", "rank": "4", "momentum": 0.5})
    assert found["vectors"] is False and found["rank"] == 4 and found["momentum"] == 0.5


def test_parameter_groups_have_floors_of_their_own():
    model, batch = Regression(), regression_batch()
    groups = [
        {"params": list(model.first.parameters()), "floor": 1e9},
        {"params": list(model.second.parameters())},
    ]
    still = bits(model.first)
    optimizer = HELENE(
        groups, lr=1e-2, hessian="element", space=ParameterSpace(model), eps=1e-2, check_eps=False
    )
    optimizer.step(model.losses, batch)
    for parameter, before in zip(model.first.parameters(), still, strict=True):
        torch.testing.assert_close(parameter.detach(), before, atol=1e-8, rtol=0)
    assert optimizer.param_groups[1]["quantiles"] and method_named("helene").rule is HELENE
