"""On the card: every op against the CPU reference. ``pytest -m gpu`` where there is a device.

The same code runs without a device at tiny sizes, in triton's interpreter, so that the one chance
on a rented card is not spent on a mistake in a test; so does the GPU benchmark.
"""

import json

import pytest
import torch

from adazeta.kernels import (
    Factors,
    adam_update_,
    add_noise_,
    gaussian,
    momentum_update_,
    perturbed_copies,
    rademacher,
    stacked_factors,
    tt_adapter,
    tt_apply,
    use_backend,
)
from adazeta.kernels.reference.adapter import ACTIVATIONS
from benchmarks.__main__ import main
from benchmarks.measure.harness import KEYS, Options
from benchmarks.suites import gpu

pytest.importorskip("triton")

from adazeta.kernels.gpu import adapter  # noqa: E402

# With a card triton compiles, and the interpreter is not there.
CARD = [
    pytest.param("cuda", marks=pytest.mark.gpu),
    *([] if torch.cuda.is_available() else ["cpu"]),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEEDS = [(k * 0x9E3779B97F4A7C15 + 3) % (1 << 63) for k in range(40)]
COEFFICIENTS = [0.3 * (-1) ** k / (k + 1) for k in range(40)]
SIZES = {"cuda": (1, 127, 0, 1021, 4096, 65_537), "cpu": (131,)}
COUNTS = {"cuda": (1, 2, 7, 40), "cpu": (2,)}


@pytest.mark.parametrize("card", CARD)
@pytest.mark.parametrize("draw", [gaussian, rademacher])
def test_draws_have_the_bits_of_the_cpu(card, draw):
    count = 100_003 if card == "cuda" else 131
    for start in (0, 5, (1 << 40) + 1):
        with use_backend("triton"):
            got = draw(SEEDS[1], start, count, device=card)
        with use_backend("reference"):
            assert torch.equal(got.cpu(), draw(SEEDS[1], start, count))


@pytest.mark.parametrize("card", CARD)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "pairs"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("shift", [0, 1])
def test_add_noise_has_the_bits_of_the_cpu(card, distribution, rounding, shift):
    tensors = [torch.randn(size + shift).to(dtype) for dtype in DTYPES for size in SIZES[card]]
    for probes in COUNTS[card]:
        arguments = (SEEDS[:probes], COEFFICIENTS[:probes])
        options = {"decay": 0.97, "distribution": distribution, "rounding": rounding}
        got = [tensor.to(card, copy=True)[shift:] for tensor in tensors]
        out = [torch.full_like(tensor, float("nan")) for tensor in got]
        with use_backend("triton"):
            add_noise_(got, *arguments, out=out, **options)
            add_noise_(got, *arguments, **options)
        with use_backend("reference"):
            expected = add_noise_(
                [tensor[shift:].clone() for tensor in tensors], *arguments, **options
            )
        for result in (got, out):
            assert all(torch.equal(a.cpu(), b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("card", CARD)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_copies_and_updates_have_the_bits_of_the_cpu(card, dtype, rounding):
    size = 10_007 if card == "cuda" else 131
    theta = torch.randn(size).to(dtype)
    state = [torch.rand(size) for _ in range(2)]
    options = {
        "beta1": 0.9,
        "beta2": 0.99,
        "lr": 0.01,
        "epsilon": 1e-8,
        "correction1": 0.3,
        "correction2": 0.2,
        "decay": 0.99,
        "rounding": rounding,
    }
    results = []
    for place, backend in (("cpu", "reference"), (card, "triton")):
        with use_backend(backend):
            copies = perturbed_copies(theta.to(place), SEEDS[:3], COEFFICIENTS[:3])
            values, first, second = (t.to(place, copy=True) for t in (theta, *state))
            momentum_update_(
                [values],
                [first],
                SEEDS[:3],
                COEFFICIENTS[:3],
                momentum=0.9,
                lr=0.1,
                decay=0.99,
                rounding=rounding,
            )
            adam_update_([values], [first], [second], SEEDS[:3], COEFFICIENTS[:3], **options)
            adam_update_(
                [values], [first], None, SEEDS[:3], COEFFICIENTS[:3], inverse_root=2.5, **options
            )
        results.append([t.cpu() for t in (copies, values, first, second)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("card", "rank"),
    [
        *(pytest.param("cuda", rank, marks=pytest.mark.gpu) for rank in (1, 5, 16, 33, 64)),
        *([] if torch.cuda.is_available() else [("cpu", 2)]),
    ],
)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "pairs"])
def test_factors_have_the_bits_of_the_cpu(card, rank, distribution):
    plan = gpu.model_plan(3, (4, 6) if card == "cuda" else (2, 3), rank)
    theta, seeds, scales = torch.randn(plan.extent), torch.tensor([5, 1 << 50]), torch.rand(2)
    results = []
    for place, backend in (("cpu", "reference"), (card, "triton")):
        with use_backend(backend):
            found = stacked_factors(
                theta.to(place), plan, seeds.to(place), scales.to(place), distribution=distribution
            )
        results.append(plan.views(found.cpu()))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.a, b.a) and torch.equal(a.b, b.b)


SHAPES = [(0, 64, 5), (1, 61, 3), (37, 576, 5), (130, 4096, 64), (3, 9001, 8)]


@pytest.mark.parametrize(
    ("card", "rows", "width", "rank", "activation"),
    [
        *(
            pytest.param("cuda", *shape, activation, marks=pytest.mark.gpu)
            for shape in SHAPES
            for activation in ACTIVATIONS
        ),
        *([] if torch.cuda.is_available() else [("cpu", 2, 61, 3, "gelu")]),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_and_gradients_are_within_rounding_of_float64(
    card, rows, width, rank, activation, dtype
):
    down, up = (
        Factors(torch.randn(n, rank) / n**0.5, torch.randn(rank, m) / rank**0.5, torch.randn(m))
        for n, m in ((width, 8), (8, width))
    )
    x, weight = (torch.randn(rows, width).to(dtype) for _ in range(2))
    # The longest sums in float32, and one rounding to the dtype at the end.
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
    results = []
    for place, kind in (("cpu", torch.float64), (card, dtype)):
        parts = [
            part.to(place, torch.float64 if kind == torch.float64 else torch.float32)
            for part in (*down, *up)
        ]
        leaves = [value.detach().requires_grad_() for value in (x.to(place, kind), *parts)]
        with use_backend("triton" if kind == dtype else "reference"):
            y = tt_adapter(
                leaves[0], Factors(*leaves[1:4]), Factors(*leaves[4:]), activation=activation
            )
            once = tt_apply(leaves[0], Factors(*leaves[1:4]))
            grads = torch.autograd.grad(y, leaves, weight.to(place, kind))
        results.append([value.detach().cpu().double() for value in (y, once, *grads)])
    for truth, got in zip(*results, strict=True):
        size = float(truth.abs().max()) if truth.numel() else 1.0
        torch.testing.assert_close(got, truth, atol=tolerance * max(size, 1.0), rtol=tolerance)


@pytest.fixture(scope="module")
def small_rows():
    return gpu.rows(
        Options(device="cuda" if torch.cuda.is_available() else "cpu", small=True, rounds=2)
    )


@pytest.mark.parametrize("card", CARD)
def test_a_list_is_one_launch_and_a_step_has_few(card, request):
    found = (
        gpu.launches(Options(device=card))
        if card == "cuda"
        else [row for row in request.getfixturevalue("small_rows") if row["op"] == "launches"]
    )
    rows = {row["op"] + " " + row["mode"]: row for row in found}
    for op in ("add_noise_", "momentum_update_", "adam_update_"):
        assert rows[f"launches {op}"]["median"] == 1
    # Two queries are four evaluations of a model with four adapters.
    assert rows["launches stacked_step"]["config"]["by_kernel"] == {
        "perturbed_copies_kernel": 1,
        "stacked_factors_kernel": 1,
        "tt_adapter_kernel": 4,
        "adam_kernel": 1,
    }
    if card == "cuda":
        assert rows["launches step"]["config"]["by_kernel"] == {
            "add_noise_kernel": 4,
            "stacked_factors_kernel": 4,
            "tt_adapter_kernel": 16,
            "adam_kernel": 1,
        }


def test_the_suite_runs_without_a_card(small_rows):
    rows = small_rows
    assert {row["op"] for row in rows} == {
        "add_noise_",
        "perturbed_copies",
        "momentum_update_",
        "adam_update_",
        "stacked_factors",
        "tt_adapter",
        "launches",
        "evaluation",
    }
    assert all(set(KEYS) <= set(row) and row["median"] > 0 for row in rows)
    assert {row["metric"] for row in rows} >= {
        "bandwidth",
        "fraction_of_copy",
        "time",
        "speedup_over_floor",
        "speedup_over_eager",
        "launches",
    }


@pytest.mark.parametrize("card", CARD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_among_few_and_among_many(card, dtype):
    few, many, width = (33, 2_100, 1_031) if card == "cuda" else (2, 34, 131)
    down, up = (
        Factors(torch.randn(n, 3, device=card), torch.randn(3, m, device=card))
        for n, m in ((width, 8), (8, width))
    )
    x = torch.randn(many, width, device=card).to(dtype)
    with use_backend("triton"):
        # The interpreter would take long over rows as many as are not split.
        shares = (None, None) if card == "cuda" else (0, 2)
        whole, split = (
            adapter.prepare(rows, down, up, "relu", share)(rows, down, up, 0.5)
            for rows, share in zip((x, x[:few]), shares, strict=True)
        )
    assert torch.equal(split, whole[:few])


def test_the_suite_runs_through_the_interpreter(device):
    options = Options(device=device.type, small=True, rounds=2)
    with use_backend("triton"):
        rows = [
            *gpu.noise(options, torch.bfloat16, 1),
            *gpu.factors(options),
            *gpu.adapter(options, torch.float32, backward=True),
            *gpu.adapter(options, torch.float32, few=True),
        ]
    assert {row["provider"] for row in rows} >= {"floor", "adazeta", "eager"}


def test_a_suite_that_breaks_leaves_the_rows_of_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.ALL", ("tt", "drift"))
    monkeypatch.setattr("benchmarks.suites.tt.rows", lambda options: 1 / 0)
    file = tmp_path / "rows.json"
    assert main(["all", "--small", "--json", str(file)]) == 1
    assert {row["benchmark"] for row in json.loads(file.read_text())} == {"drift"}
    assert "ZeroDivisionError" in capsys.readouterr().err
