"""The C library against the reference, bit by bit, at every level of the instruction set here."""

import ctypes
import math
import os
import subprocess
import sys
import threading

import pytest
import torch

from adazeta.kernels import (
    FactorLayer,
    FactorPlan,
    adam_update_,
    add_noise_,
    gaussian,
    momentum_update_,
    pairs,
    perturbed_copies,
    rademacher,
    stacked_factors,
    use_backend,
)
from adazeta.kernels.cpu import library, structures
from tests.helpers.paths import ROOT

if library.problem():
    pytest.skip(library.problem(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_empty")

LEVELS = library.LEVELS[: library.LEVELS.index(library.best_level()) + 1]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DISTRIBUTIONS = ["gaussian", "rademacher", "pairs"]
SEEDS = [3, 1 << 40, 3, 12345, 0, (1 << 63) - 1, 8] + list(range(100, 133))
COEFFICIENTS = [0.1, -0.01, 1e-3, 2.5, -1.0, 0.3, 1e-8] + [0.01 * k for k in range(33)]
ADAM = dict(
    beta1=0.9, beta2=0.999, lr=0.01, epsilon=1e-8, correction1=0.3, correction2=0.01, decay=0.99
)


@pytest.fixture(params=LEVELS, autouse=True)
def level(request, monkeypatch):
    monkeypatch.setenv("ADAZETA_ISA", request.param)
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["torch's team", "own pool"])
def team(request):
    """Who shares the work of many threads."""
    if request.param == "own pool":
        library.load().adazeta_use_team(None)
    yield
    library.load().adazeta_use_team(library.torch_team())


def by_backend(function):
    with use_backend("reference"):
        expected = function()
    with use_backend("native"):
        return expected, function()


def same(expected, got):
    """Equal in every bit; NaN equals NaN."""
    assert len(expected) == len(got)
    return all(
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        and torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())
        for a, b in zip(expected, got, strict=True)
    )


def mixed_tensors():
    """Every dtype, empty, odd and prime sizes, longer than a tile, not aligned."""
    kinds = [
        (7, torch.float32),
        (0, torch.bfloat16),
        (301, torch.bfloat16),
        (1, torch.float16),
        (130, torch.float16),
        (2048, torch.float32),
        (5003, torch.bfloat16),
        (4099, torch.float16),
        (1021, torch.float32),
        (0, torch.float32),
    ]
    tensors = [torch.randn(size).to(dtype) for size, dtype in kinds]
    tensors += [torch.randn(size).to(dtype)[1:] for size in (68, 4001) for dtype in DTYPES]
    return tensors


def offsets_for(tensors, odd):
    starts, end = [], (1 << 34) - 5000 if odd else 0
    for tensor in tensors:
        starts.append(end + (3 if odd else -end % 4))
        end = starts[-1] + tensor.numel()
    return starts


def test_the_level_is_that_asked_for(level, monkeypatch):
    assert library.level() == level
    monkeypatch.delenv("ADAZETA_ISA")
    assert library.level() == LEVELS[-1]
    monkeypatch.setenv("ADAZETA_ISA", "mmx")
    with pytest.raises(ValueError, match="ADAZETA_ISA is 'mmx'"):
        library.level()


@pytest.mark.parametrize("function", [gaussian, rademacher, pairs])
@pytest.mark.parametrize(
    ("start", "count"),
    [
        (0, 0),
        (0, 1),
        (0, 1031),
        (3, 127),
        ((1 << 40) + 1, 129),
        ((1 << 62) - 8, 64),
        ((1 << 34) - 1000, 5000),
        ((1 << 39) - 1001, 5000),
        (77, 1 << 17),
    ],
)
def test_draws_are_the_same_bits(function, start, count):
    seeds = torch.tensor(SEEDS[:3])
    assert same(*([x] for x in by_backend(lambda: function(seeds, start, count, stream=2))))


def test_a_million_normals_are_the_same_bits():
    assert same(*([x] for x in by_backend(lambda: gaussian(7, 5, 1_000_003))))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("probes", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_add_noise_is_the_same_bits(distribution, probes, odd, rounding):
    tensors = mixed_tensors()
    before = [tensor.clone() for tensor in tensors]

    def run():
        out = [torch.full_like(tensor, math.nan) for tensor in tensors]
        return add_noise_(
            tensors,
            SEEDS[:probes],
            COEFFICIENTS[:probes],
            out=out,
            decay=0.97,
            offsets=offsets_for(tensors, odd),
            distribution=distribution,
            rounding=rounding,
            rounding_seed=(1 << 62) + 5,
        )

    assert same(*by_backend(run))
    assert same(before, tensors)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("rule", ["momentum", "adam", "adam of a group"])
@pytest.mark.parametrize("probes", [0, 1, 7])
def test_updates_are_the_same_bits(distribution, rounding, rule, probes):
    thetas = mixed_tensors()
    states = [[torch.rand(tensor.shape) for tensor in thetas] for _ in range(2)]
    options = dict(
        offsets=offsets_for(thetas, True),
        distribution=distribution,
        rounding=rounding,
        rounding_seed=9,
    )
    probe = (SEEDS[:probes], COEFFICIENTS[:probes])

    def run():
        theta, first, second = ([t.clone() for t in tensors] for tensors in (thetas, *states))
        if rule == "momentum":
            momentum_update_(theta, first, *probe, momentum=0.9, lr=0.1, decay=0.99, **options)
        elif rule == "adam":
            adam_update_(theta, first, second, *probe, **ADAM, **options)
        else:
            adam_update_(theta, first, None, *probe, inverse_root=0.37, **ADAM, **options)
        return theta + first + second

    assert same(*by_backend(run))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "offset"), [(0, 3), (1, 0), (127, 5), (5003, 130)])
@pytest.mark.parametrize("probes", [0, 1, 9])
def test_perturbed_copies_are_the_same_bits(distribution, dtype, size, offset, probes):
    theta = torch.randn(size + 1).to(dtype)[1:]
    # Pairs of one seed, as two-sided differences have them.
    seeds = [SEEDS[k // 2] for k in range(probes)]
    expected, got = by_backend(
        lambda: perturbed_copies(
            theta, seeds, COEFFICIENTS[:probes], offset=offset, distribution=distribution
        )
    )
    assert got.shape == (probes, size) and same([expected], [got])


LAYERS = [  # input modes, output modes, inner ranks, in, out, bias
    ((8, 8, 9), (8, 8), (5, 5, 5, 5), 576, 64, True),
    ((8, 8), (8, 8, 9), (5, 5, 5, 5), 61, 571, False),
    ((2, 3, 1), (5,), (1, 64, 7), 5, 3, True),
    ((1,), (1,), (1,), 1, 1, False),
    ((17,), (31, 2), (33, 2), 16, 61, True),
    ((2, 2, 2, 2), (2, 2, 2, 2), (2, 3, 5, 7, 6, 4, 3), 15, 16, True),
    ((31, 13), (8, 32), (64, 33, 40), 400, 255, True),
]


def factor_plan(gap):
    """A plan of LAYERS whose cores lie from the last to the first, with a gap between them."""
    layers, end = [], 3
    for inputs, outputs, inner, n, m, bias in LAYERS:
        ranks = (1, *inner, 1)
        shapes = [(ranks[k], mode, ranks[k + 1]) for k, mode in enumerate(inputs + outputs)]
        offsets = []
        for shape in reversed(shapes):
            offsets.insert(0, end)
            end += math.prod(shape) + gap
        layers.append(
            FactorLayer(tuple(offsets), tuple(shapes), len(inputs), n, m, end if bias else None)
        )
        end += (m if bias else 0) + gap
    return FactorPlan(tuple(layers))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("gap", [1, 300])
@pytest.mark.parametrize("probes", [None, 0, 1, 6])
def test_stacked_factors_are_the_same_bits(distribution, gap, probes, threads):
    plan = factor_plan(gap)
    theta = torch.randn(plan.extent)
    if probes is None:
        arguments = ()
    else:  # pairs of one seed, and one that comes back later
        seeds = [3, 3, 1 << 40, 5, 5, 3][:probes]
        arguments = (torch.tensor(seeds, dtype=torch.int64), torch.randn(probes))
    threads(2)
    expected, got = by_backend(
        lambda: [
            part
            for factors in plan.views(
                stacked_factors(theta, plan, *arguments, distribution=distribution)
            )
            for part in factors
            if part is not None
        ]
    )
    assert same(expected, got)


def test_stacked_factors_keep_extreme_values():
    plan = factor_plan(0)
    theta = torch.randn(plan.extent)
    theta[::7] = torch.tensor([0.0, -0.0, math.inf, math.nan, 1e-40, -3e38]).repeat(plan.extent)[
        : len(theta[::7])
    ]
    probes = (torch.tensor([1, 2]), torch.tensor([0.0, 1e-3]))
    expected, got = by_backend(
        lambda: [
            part
            for factors in plan.views(stacked_factors(theta, plan, *probes))
            for part in factors
            if part is not None
        ]
    )
    assert same(expected, got)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_parameters_pass_as_in_the_reference(dtype, rounding):
    values = (
        torch.tensor(
            [
                math.inf,
                -math.inf,
                math.nan,
                0.0,
                -0.0,
                1e-40,
                -6e-8,
                65504.0,
                65519.9,
                65520.0,
                -65519.0,
                3.4e38,
                3.3895e38,
                -3.3961e38,
                6.1e-5,
                6.09e-5,
                2.0**-24,
                2.0**-25,
                1.00390625,
            ]
        )
        .to(dtype)
        .repeat(64)
    )
    for arguments, decay in (
        (([], []), 1.0),
        (([], []), 1.0004),
        (([3], [20.0]), 1.0),
        (([3], [1e-7]), 1.0),
        (([3], [1e-40]), 0.5),
    ):
        assert same(
            *by_backend(
                lambda a=arguments, d=decay: [
                    add_noise_(
                        values.clone(),
                        *a,
                        decay=d,
                        distribution="rademacher",
                        rounding=rounding,
                        rounding_seed=1,
                    )
                ]
            )
        )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_do_not_show(count, threads, team):
    theta = [torch.randn(300_007), torch.randn(7), torch.randn(90_001).bfloat16()]

    def run():
        tensors = [tensor.clone() for tensor in theta]
        add_noise_(tensors, SEEDS[:2], COEFFICIENTS[:2], decay=0.9)
        return [*tensors, perturbed_copies(theta[2], SEEDS[:3], COEFFICIENTS[:3], offset=1)]

    threads(count)
    assert same(*by_backend(run))


def test_only_the_elements_of_the_tensors_are_written():
    storage = torch.zeros(256)
    with use_backend("native"):
        add_noise_([storage[5:70], storage[101:160]], [1], [1.0], offsets=[2, 1001])
    assert torch.equal(storage[5:70], gaussian(1, 2, 65))
    assert torch.equal(storage[101:160], gaussian(1, 1001, 59))
    assert not storage[:5].any() and not storage[70:101].any() and not storage[160:].any()


def test_versions_of_written_parameters_move_on():
    parameter = torch.nn.Parameter(torch.zeros(8))
    version = parameter._version
    with use_backend("native"):
        add_noise_(parameter, [1], [1.0])
    assert parameter._version > version


def test_calls_from_many_threads_at_once(threads, team):
    threads(2)
    expected = gaussian(5, 0, 200_000)
    results = {}

    def work(name):
        results[name] = [torch.equal(gaussian(5, 0, 200_000), expected) for _ in range(10)]

    callers = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4 and all(all(result) for result in results.values())


FORK = """
import os, sys, torch
from adazeta.kernels import gaussian
torch.set_num_threads(2)
expected = gaussian(5, 0, 300_000)  # torch's team has threads now
child = os.fork()
if not child:
    found = [gaussian(5, 0, 300_000) for _ in range(3)]
    torch.set_num_threads(1)  # torch's own operations would wait for a team that is not there
    os._exit(0 if all(torch.equal(each, expected) for each in found) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(gaussian(5, 0, 300_000), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_draws_the_same_bits():
    subprocess.run(
        [sys.executable, "-c", FORK],
        cwd=ROOT,
        check=True,
        timeout=60,
        env={**os.environ, "ADAZETA_BACKEND": "native"},
    )


def test_flushing_of_subnormals_does_not_show():
    tiny = torch.full((64,), 3e-40)
    with use_backend("native"):
        expected = add_noise_(tiny.clone(), [], [], decay=0.5)
        if not torch.set_flush_denormal(True):
            return
        try:
            got = add_noise_(tiny.clone(), [], [], decay=0.5)
        finally:
            torch.set_flush_denormal(False)
    assert torch.equal(expected.view(torch.int32), got.view(torch.int32)) and expected.all()


def test_a_library_of_another_version_or_none_is_refused(monkeypatch, tmp_path):
    library.load.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(library, "FILE", tmp_path / "missing.so")
            assert "not built" in library.problem()
            library.load.cache_clear()
            (tmp_path / "broken.so").write_bytes(b"no library")
            patch.setattr(library, "FILE", tmp_path / "broken.so")
            assert "does not load" in library.problem()
            library.load.cache_clear()
        monkeypatch.setattr(library, "ABI", library.ABI + 1)
        assert f"version {library.ABI} is needed" in library.problem()
        with use_backend("native"), pytest.raises(RuntimeError, match="is needed"):
            gaussian(1, 0, 3)
    finally:
        monkeypatch.undo()
        library.load.cache_clear()


def test_the_structures_are_as_large_as_those_of_the_library():
    loaded = library.load()
    sizes = (ctypes.c_int64 * 5)()
    loaded.adazeta_sizes(sizes)
    assert list(sizes) == [
        ctypes.sizeof(s)
        for s in (
            structures.CTensor,
            structures.CUpdate,
            structures.CCopies,
            structures.CLayer,
            structures.CFactors,
        )
    ]
