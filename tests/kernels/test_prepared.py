"""Calls that are prepared once: what sets them apart, what is checked again, what is launched."""

import json

import pytest
import torch

pytest.importorskip("triton")

from adazeta.kernels import Factors, tt_adapter, use_backend  # noqa: E402
from adazeta.kernels.gpu import adapter as kernel  # noqa: E402
from adazeta.kernels.gpu.prepared import COMPARED, Prepared, launches_compiled  # noqa: E402
from adazeta.kernels.ops import adapter as ops  # noqa: E402
from adazeta.kernels.ops.calls import Calls, described  # noqa: E402
from benchmarks.measure import stubbed  # noqa: E402
from tests.helpers.bits import same_bits  # noqa: E402

WIDTH, MIDDLE = 24, 8


def layer(n: int, m: int, rank: int = 2, lead: tuple[int, ...] = ()) -> Factors:
    return Factors(torch.randn(*lead, n, rank), torch.randn(*lead, rank, m), torch.randn(m))


def pair(rank: int = 2, lead: tuple[int, ...] = ()) -> tuple[Factors, Factors]:
    return layer(WIDTH, MIDDLE, rank, lead), layer(MIDDLE, WIDTH, rank, lead)


def transposed(factors: Factors) -> Factors:
    """The same numbers with A in the layout of a plan, which the kernel reads as it is."""
    return factors._replace(a=factors.a.mT.contiguous().mT)


@pytest.fixture
def calls(monkeypatch):
    """No call is known, and what is prepared is counted."""
    made = []
    prepare = kernel.prepare
    monkeypatch.setattr(ops, "_CALLS", Calls())
    monkeypatch.setattr(
        kernel, "prepare", lambda *given: made.append(given[0].shape) or prepare(*given)
    )
    return made


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [pair, lambda: map(transposed, pair())])
def test_a_call_that_is_known_computes_with_what_it_is_given(device, calls, dtype, make):
    for scale in (1.0, -0.5, 3.0):
        x = torch.randn(3, 5, WIDTH, device=device).to(dtype)
        down, up = (Factors(*(value.to(device) for value in f)) for f in make())
        with use_backend("triton"):
            got = tt_adapter(x, down, up, scale=scale)
        with use_backend("reference"):
            expected = tt_adapter(x, down, up, scale=scale)
        assert got.shape == x.shape
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-2)
    assert len(calls) == 1


def test_other_shapes_layouts_dtypes_and_places_are_other_calls(device, calls):
    down, up = pair()
    storage = torch.randn(7 * WIDTH + 1)
    x = storage[:-1].view(7, WIDTH)
    arguments = [
        (x, down, up, "relu"),
        (x[:6], down, up, "relu"),
        (x.view(1, 7, WIDTH), down, up, "relu"),
        (x.t().contiguous().t(), down, up, "relu"),
        (storage[1:].view(7, WIDTH), down, up, "relu"),
        (x.half(), down, up, "relu"),
        (x, transposed(down), up, "relu"),
        (x, down._replace(bias=None), up, "relu"),
        (x, Factors(*(value.bfloat16() for value in down)), up, "relu"),
        (x, *pair(3), "relu"),
        (x, *pair(2, (7,)), "relu"),
        (x, down, up, "silu"),
    ]
    with use_backend("triton"):
        for _ in range(2):
            for x, down, up, activation in arguments:
                got = tt_adapter(x, down, up, activation=activation)
                rows = x.reshape(*down.a.shape[:-2], -1, WIDTH)
                fresh = kernel.tt_adapter(rows, down, up, activation, 1.0)
                assert same_bits(got, fresh.view(x.shape))
    # kernel.tt_adapter prepares each of its own.
    assert len(calls) == len(arguments) * 3


def test_wrong_input_is_refused_after_right_input(calls):
    x, (down, up) = torch.randn(6, WIDTH), pair()
    wrong = [
        (x, layer(WIDTH, MIDDLE + 1), up),
        (x[:, 1:], down, up),
        (x, down, layer(MIDDLE, WIDTH - 1)),
        (x.int(), down, up),
        (x, *pair(2, (4,))),
        (x, Factors(*(value.to("meta") for value in down)), up),
    ]
    with use_backend("triton"):
        tt_adapter(x, down, up)
        for given in wrong:
            for _ in range(2):
                with pytest.raises((ValueError, TypeError)):
                    tt_adapter(*given)
        with pytest.raises(ValueError, match="activation is 'rel'"):
            tt_adapter(x, down, up, activation="rel")
    assert len(calls) == 1


def test_a_gradient_and_another_backend_are_asked_for_at_each_call(calls):
    x, (down, up) = torch.randn(6, WIDTH), pair()
    with use_backend("triton"):
        plain = tt_adapter(x, down, up)
        leaf = x.clone().requires_grad_()
        y = tt_adapter(leaf, down, up)
        assert y.requires_grad and same_bits(y.detach(), plain)
        with torch.no_grad():
            assert not tt_adapter(leaf, down, up).requires_grad
    known = len(calls)
    with use_backend("reference"):
        tt_adapter(x, down, up)
    assert len(calls) == known


def test_no_rows_and_float64_have_no_kernel(calls):
    down, up = pair()
    with use_backend("triton"):
        for x in (torch.zeros(0, WIDTH), torch.randn(3, WIDTH, dtype=torch.float64)):
            assert tt_adapter(x, down, up).dtype == x.dtype
    assert not calls


def test_the_oldest_calls_make_room():
    calls = Calls(most=2)
    for name in ("one", "two", "three"):
        assert calls.keep(name, name.upper()) == name.upper()
    assert [calls.get(name) for name in ("one", "two", "three")] == [None, "TWO", "THREE"]


def test_a_description_holds_what_a_compiled_kernel_depends_on():
    storage = torch.zeros(64)
    assert described(None) is None
    assert described(storage[:8]) == described(storage[16:24])
    others = [storage[1:9], storage[:16:2], storage[:8].half(), storage[:8].view(2, 4)]
    assert len({described(storage[:8]), *map(described, others)}) == 5


def test_the_interpreter_has_no_compiled_kernel():
    seen = []

    class Kernel:
        arg_names = ("x", "SIZE")

        def __getitem__(self, grid):
            return lambda *arguments, **settings: seen.append((grid, arguments, settings))

    launch = Prepared(Kernel(), (3, 1, 1), {"SIZE": 4, "num_warps": 2})
    for _ in range(2):
        launch(torch.zeros(4, dtype=torch.bfloat16))
    assert seen[0][0] == (3, 1, 1) and seen[0][2] == {"SIZE": 4, "num_warps": 2}
    assert len(seen) == 2 and all(call[1][0].dtype == torch.int16 for call in seen)


def test_versions_that_were_not_compared_and_amd_launch_the_usual_way(monkeypatch):
    for version, hip, expected in (
        ("3.6.0", None, True),
        ("3.6.0", "6.4", False),
        ("3.10.0", None, False),
        ("4.3.4", None, False),
    ):
        monkeypatch.setattr("triton.__version__", version)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert launches_compiled() is expected


def test_a_compiled_kernel_is_launched_with_what_the_usual_way_hands_over():
    found = json.loads(stubbed.run("tests.helpers.launches"))
    assert found["triton"].startswith(COMPARED), "compare the launches of this one; see COMPARED"
    for first, second in found["launches"].values():
        assert first == second
    # 183 before calls were prepared; it is what the host's time is made of.
    assert found["python_calls"] <= 75
