"""The tensor-train ops where the other tests leave gaps: gradients in every dtype, far elements.

``test_adapter.py`` has the adapter's cases, ``test_layers.py`` one layer's forward pass.
"""

import ctypes
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from adazeta.kernels import (
    FactorLayer,
    FactorPlan,
    Factors,
    add_noise_,
    stacked_factors,
    tt_adapter,
    tt_apply,
    tt_factors,
    tt_linear,
    use_backend,
)

pytest.importorskip("triton")

from triton.runtime import interpreter  # noqa: E402

from adazeta.kernels.gpu import adapter, factors, layers, tiles  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (probes, rows, in, out, rank, dims of the bias)
LAYERS = [
    (None, 1, 61, 67, 5, 1),
    (None, 7, 1, 13, 1, 0),
    (3, 5, 257, 1, 17, 2),
    (2, 1, 33, 300, 64, 1),
    (None, 64, 16, 16, 8, 1),
]


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_and_its_gradients_against_float64(device, backend, dtype, case):
    probes, rows, n, m, rank, dims = case
    lead = () if probes is None else (probes,)
    bias = [None, torch.randn(m), torch.randn(*lead, m)][dims]
    values = (
        torch.randn(*lead, rows, n).to(dtype),
        torch.randn(*lead, n, rank) / n**0.5,
        torch.randn(*lead, rank, m) / rank**0.5,
        bias,
    )
    leaves = [v.to(device).requires_grad_() for v in values if v is not None]
    weight = torch.randn(*lead, rows, m).to(device, dtype)

    def plain(kind: torch.dtype) -> tuple[Tensor, ...]:
        moved = [v.detach().to(kind).requires_grad_() for v in leaves]
        y = moved[0] @ moved[1] @ moved[2]
        if dims:
            y = y + (moved[3] if moved[3].dim() == 1 else moved[3][:, None])
        return (y, *torch.autograd.grad(y, moved, weight.to(kind)))

    with use_backend(backend):
        y = tt_apply(leaves[0], Factors(*leaves[1:3], leaves[3] if dims else None))
        got = (y, *torch.autograd.grad(y, leaves, weight))
    for value, truth, rough in zip(got, plain(torch.float64), plain(dtype), strict=True):
        assert value.shape == truth.shape
        size = truth.abs().max()
        error = (value.double() - truth).abs().max()
        # float32 sums of at most 300 terms, and one rounding to the dtype that is stored.
        assert error <= size * (torch.finfo(value.dtype).eps + 2e-6)
        if dtype != torch.float32:
            assert error <= (rough.double() - truth).abs().max() + 2e-6 * size


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_without_rows_have_gradients_of_zero(device, backend, dtype):
    a, b, bias = (
        torch.randn(*shape, device=device, requires_grad=True) for shape in ((5, 2), (2, 3), (3,))
    )
    x = torch.zeros(0, 5, device=device, dtype=dtype, requires_grad=True)
    with use_backend(backend):
        y = tt_apply(x, Factors(a, b, bias))
        grads = torch.autograd.grad(y.sum(), (x, a, b, bias))
    assert y.shape == (0, 3) and y.dtype == dtype and grads[0].shape == (0, 5)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(
    ("rank", "distribution"),
    [(1, "gaussian"), (16, "rademacher"), (33, "gaussian"), (64, "rademacher")],
)
def test_factors_of_every_class_of_ranks(device, backend, rank, distribution):
    """The ranks of ``test_factors.py`` are below 8; dispatch has a tile for 8, 16, 32, 64."""
    shapes = ((1, 6, rank), (rank, 5, 1))
    offsets = (4, 4 + 8 * rank)
    plan = FactorPlan((FactorLayer(offsets, shapes, 1, 6, 5, None),))
    theta = torch.randn(plan.extent)
    seeds, scales = torch.tensor([11]), torch.tensor([0.25])
    with use_backend(backend):
        found = stacked_factors(
            theta.to(device), plan, seeds.to(device), scales.to(device), distribution=distribution
        ).cpu()
    with use_backend("reference"):
        moved = add_noise_(theta.clone(), [11], [0.25], distribution=distribution)
        (expected,) = plan.views(stacked_factors(moved, plan))
    (views,) = plan.views(found)
    assert torch.equal(views.a, expected.a) and torch.equal(views.b, expected.b)
    cores = [moved[o : o + prod(s)].view(s).double() for o, s in zip(offsets, shapes, strict=True)]
    exact = tt_factors(cores, cut=1, in_features=6, out_features=5)
    for value, truth in zip((views.a[0], views.b[0]), exact, strict=True):
        # Sums of up to 64 products in float32.
        assert (value - truth).abs().max() <= 64 * 2.0**-23 * truth.abs().max()


# Elements beyond 2^31. Tensors of such a size have memory for their last elements alone: they
# begin at an address that belongs to nobody, and only the last program runs.


def ending_in(tail: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a shape whose last elements are those of ``tail``, of 16 bits or float32."""
    kind = ctypes.c_int16 if tail.element_size() == 2 else ctypes.c_float
    address = tail.data_ptr() - (prod(shape) - tail.numel()) * tail.element_size()
    array = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), (prod(shape),))
    return torch.from_numpy(array).view(tail.dtype).view(shape)


class LastProgram:
    """Stands in for a kernel: runs the last program of a grid, and keeps the outputs' tails."""

    def __init__(self, kernel, monkeypatch):
        self.kernel, self.monkeypatch = kernel, monkeypatch

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            last = [size - 1 for size in (*grid, 1, 1)[:3]]
            with self.monkeypatch.context() as patch:
                patch.setattr(
                    interpreter.interpreter_builder,
                    "create_get_program_id",
                    lambda axis: interpreter.TensorHandle(
                        np.array([last[axis]], np.int32), interpreter.tl.int32
                    ),
                )
                self.kernel[(1,)](*arguments, **options)

        return launch


@pytest.fixture
def far(monkeypatch):
    """Run last programs, and let large outputs have memory for their tails alone."""
    for module, name in (
        (layers, "tt_apply_kernel"),
        (adapter, "tt_adapter_kernel"),
        (adapter, "tt_adapter_backward_kernel"),
        (tiles, "outer_kernel"),
    ):
        monkeypatch.setattr(module, name, LastProgram(getattr(module, name), monkeypatch))
    empty, tails = torch.empty, []

    def allocate(*size, dtype=torch.float32, device=None):
        shape = tuple(size[0]) if isinstance(size[0], tuple | torch.Size) else size
        if prod(shape) < 1 << 20:
            return empty(shape, dtype=dtype, device=device)
        tails.append(torch.zeros(1 << 14, dtype=dtype))
        return ending_in(tails[-1], shape)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(
        torch, "empty_like", lambda like, **_: allocate(like.shape, dtype=like.dtype)
    )
    return tails


ROWS = (1 << 31) // 64 + 3
INTERPRETED = pytest.mark.skipif(
    torch.cuda.is_available(), reason="addresses of the host, for the interpreter"
)


@INTERPRETED
@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_beyond_2_31_elements(far, probes, dtype):
    tail = torch.randn(100, 64).to(dtype)
    x = ending_in(tail, (probes, ROWS, 64))
    assert x.numel() > 1 << 31
    down, up = (
        Factors(torch.randn(probes, 64, 2) / 8, torch.randn(probes, 2, 64), torch.randn(probes, 64))
        for _ in range(2)
    )
    tails = [Factors(*(part[-1] for part in side)) for side in (down, up)]
    with use_backend("reference"):
        once, whole = tt_apply(tail, tails[0]), tt_adapter(tail, *tails)
    with use_backend("triton"):
        got = tt_apply(x, down).view(-1, 64)[-2:], tt_adapter(x, down, up).view(-1, 64)[-2:]
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-2}
    torch.testing.assert_close(got[0], once[-2:], **close)
    torch.testing.assert_close(got[1], whole[-2:], **close)


@INTERPRETED
def test_gradients_of_rows_beyond_2_31_elements(far, monkeypatch):
    x, grad = torch.randn(100, 64).half(), torch.randn(100, 64).half()
    down, up = (
        Factors(torch.randn(64, 2) / 8, torch.randn(2, 64), torch.randn(64)) for _ in range(2)
    )
    ends = [ending_in(value, (1, ROWS, 64)) for value in (x, grad)]
    outer = []
    monkeypatch.setattr(
        adapter,
        "outer",
        lambda left, right, *rest, **_: (
            outer.append((left[..., -1:, :].clone(), right[..., -1:, :].clone()))
            or (torch.zeros(1, left.shape[-1], right.shape[-1]), torch.zeros(1, 64))
        ),
    )
    with use_backend("triton"):
        grad_x, *_ = adapter.tt_adapter_backward(ends[1], ends[0], down, up, "relu", 0.5)
    with use_backend("reference"):
        row = x[-1:].double().requires_grad_()
        exact = [Factors(*(part.double() for part in side)) for side in (down, up)]
        y = tt_adapter(row, *exact, scale=0.5)
        (truth,) = torch.autograd.grad(y, row, grad[-1:].double())
    torch.testing.assert_close(grad_x[0, -1:].double(), truth, rtol=4e-3, atol=4e-3)
    low = x[-1:].double() @ exact[0].a
    torch.testing.assert_close(outer[1][0][0].double(), low, rtol=1e-4, atol=1e-4)


@INTERPRETED
def test_sums_over_rows_beyond_2_31_elements(far):
    left, right = torch.randn(40, 2), torch.randn(40, 64).half()
    rows = (1 << 31) // 64 // 1024 * 1024 + 17  # the last part has 17 rows
    with use_backend("triton"):
        parts = []
        total = torch.Tensor.sum
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "sum", lambda self, *_: parts.append(self[-1]) or self[-1])
            tiles.outer(
                ending_in(left, (1, rows, 2)), ending_in(right, (1, rows, 64)), 0.5, with_sum=True
            )
        assert torch.Tensor.sum is total
    product, sums = parts
    torch.testing.assert_close(product[0], 0.5 * left[-17:].T @ right[-17:].float())
    torch.testing.assert_close(sums[0], 0.5 * right[-17:].float().sum(0))


@INTERPRETED
def test_factors_of_a_probe_beyond_2_31_elements(monkeypatch):
    """A probe's place has 64 bits: here the table moves it back to memory that is there."""
    plan = FactorPlan((FactorLayer((0, 8), ((1, 4, 2), (2, 4, 1)), 1, 4, 4, None),))
    theta, probe = torch.randn(16), 7
    extent = (1 << 31) // 5
    items = plan.items.clone()
    # The first elements of the cores and of the result, moved back as far as the probe moves them.
    items[:, 0] -= probe * extent
    size = (1 << 31) // 3
    items[:, 13] -= probe * size
    assert probe * size > 1 << 31
    work = [(item, 0, 0, 0) for item in range(len(items))]
    out = torch.full((plan.size,), float("nan"))
    points, columns, span = factors.BLOCKS[8]
    for number in range(len(work)):
        program = (number, probe, 0)
        monkeypatch.setattr(
            interpreter.interpreter_builder,
            "create_get_program_id",
            lambda axis, program=program: interpreter.TensorHandle(
                np.array([program[axis]], np.int32), interpreter.tl.int32
            ),
        )
        factors.stacked_factors_kernel[(1,)](
            theta,
            items,
            torch.tensor(work, dtype=torch.int32),
            out,
            extent,
            size,
            RANK=8,
            BLOCK_POINTS=points,
            BLOCK_COLUMNS=columns,
            SPAN=span,
        )
    with use_backend("reference"):
        expected = stacked_factors(theta, plan)
    for value, truth in zip(plan.views(out[None])[0][:2], plan.views(expected)[0][:2], strict=True):
        assert torch.equal(value, truth)


def layer(x, core, last, bias):
    return tt_linear(x, [core, last], bias, cut=1, out_features=4).cos()


@pytest.mark.parametrize("probes", [None, 2])
def test_ops_compile_whole_with_stacked_cores_and_gradients(device, probes):
    lead = () if probes is None else (probes,)
    values = [
        torch.randn(*shape, device=device, requires_grad=True)
        for shape in ((4, 6), (*lead, 1, 6, 3), (*lead, 3, 4, 1), (4,))
    ]

    def adapted(x, core, last, bias):
        a, b = tt_factors([core, last], cut=1, in_features=6, out_features=4)
        up = Factors(b.mT, a.mT)
        return tt_adapter(x, Factors(a, b, bias), up, activation="gelu").cos()

    for function in (layer, adapted):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        expected, got = function(*values), compiled(*values)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), values), torch.autograd.grad(expected.sum(), values)
        )
