"""What a call refuses or splits: memory that overlaps, other devices, grids; and caches."""

import pytest
import torch

from adazeta.kernels import (
    Factors,
    adam_update_,
    add_noise_,
    gaussian,
    momentum_update_,
    perturbed_copies,
    tt_adapter,
    tt_apply,
    use_backend,
)
from adazeta.kernels.ops.low_rank_add import low_rank_add
from adazeta.kernels.ops.rules import sign_update_

BACKENDS = ("reference", "native", "triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_out_that_overlaps_its_input_is_refused(backend):
    storage = torch.arange(20_000.0)
    before = storage.clone()
    with use_backend(backend):
        with pytest.raises(ValueError, match="out 0 and tensor 0 share|tensor 0 and out 0 share"):
            add_noise_(storage[:-1], [7], [0.0], out=storage[1:])
        assert torch.equal(storage, before)
        add_noise_(storage, [7], [0.0], out=storage)
        assert torch.equal(storage, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_that_is_given_twice_is_refused(backend):
    theta, other = torch.zeros(8), torch.ones(8)
    with use_backend(backend):
        with pytest.raises(ValueError, match="share memory"):
            add_noise_([theta, other, theta], [7], [1.0])
        with pytest.raises(ValueError, match="share memory"):
            add_noise_([theta[:5], theta[4:]], [7], [1.0])
        with pytest.raises(ValueError, match="out 1 and out 0 share|out 0 and out 1 share"):
            add_noise_([theta, other], [7], [1.0], out=[torch.empty(16)[:8]] * 2)
        with pytest.raises(ValueError, match="momentum"):
            momentum_update_(theta, theta, [7], [1.0], momentum=0.9, lr=0.1)
        with pytest.raises(ValueError, match="second moment"):
            adam_update_(
                theta, other, other, [7], [1.0], beta1=0.9, beta2=0.9, lr=0.1,
                epsilon=1e-8, correction1=1.0, correction2=1.0,
            )  # fmt: skip
        with pytest.raises(ValueError, match="share memory"):
            sign_update_([theta, theta], [7], [1.0], lr=0.1)
    assert not theta.any() and other.all()


def test_neighbours_and_what_is_only_read_may_touch():
    storage = torch.zeros(64)
    add_noise_([storage[:30], storage[30:64], storage[64:]], [7], [1.0], offsets=[0, 30, 64])
    assert torch.equal(storage, gaussian(7, 0, 64))
    same = torch.zeros(8)
    one, two = add_noise_([same, same], [7], [1.0], out=[torch.empty(8), torch.empty(8)])
    assert torch.equal(one, gaussian(7, 0, 8)) and torch.equal(two, gaussian(7, 8, 8))


def test_factors_on_another_device_are_refused():
    x = torch.zeros(4, 6)
    there = Factors(torch.zeros(6, 2, device="meta"), torch.zeros(2, 6, device="meta"))
    here = Factors(torch.zeros(6, 2), torch.zeros(2, 6))
    bias = Factors(*here[:2], torch.zeros(6, device="meta"))
    for call in (
        lambda: tt_apply(x, there),
        lambda: tt_apply(x, bias),
        lambda: tt_adapter(x, here, there),
        lambda: tt_adapter(x, bias, here),
        lambda: low_rank_add(x, x, *there[:2]),
    ):
        with pytest.raises(ValueError, match="on meta for x on cpu; move them"):
            call()


def test_only_nvidias_backend_is_given_a_register_limit(monkeypatch):
    launch = pytest.importorskip("adazeta.kernels.gpu.launch")
    assert launch.launch_options(8) == {"num_warps": 8, "maxnreg": 255}
    monkeypatch.setattr(torch.version, "xpu", "20250100", raising=False)
    assert launch.launch_options(8) == {"num_warps": 8}


def test_more_probes_than_a_grid_has_programs():
    launch = pytest.importorskip("adazeta.kernels.gpu.launch")
    assert launch.grid(3, 65_535) == (3, 65_535, 1)
    for probes, parts in ((65_536, 1), (1, 65_536)):
        with pytest.raises(ValueError, match="65,535 of each; split the call"):
            launch.grid(3, probes, parts)


def test_copies_beyond_the_grid_are_several_launches(monkeypatch):
    noise = pytest.importorskip("adazeta.kernels.gpu.noise")
    monkeypatch.setattr(noise, "LIMIT", 2)
    theta, seeds, scales = torch.randn(9), [1, 2, 3, 2, 1], [1.0, 0.5, 0.25, 2.0, -1.0]
    expected = perturbed_copies(theta, seeds, scales)
    with use_backend("triton"):
        assert torch.equal(perturbed_copies(theta, seeds, scales), expected)


def test_streams_are_all_of_32_bits():
    expected = gaussian(7, 3, 9, stream=(1 << 32) - 1)
    with use_backend("triton"):
        assert torch.equal(gaussian(7, 3, 9, stream=(1 << 32) - 1), expected)


def test_a_pass_of_five_hundred_launches_finds_its_tables_again():
    tensor_lists = pytest.importorskip("adazeta.kernels.gpu.tensor_lists")
    lists = [[torch.zeros(4)] for _ in range(500)]
    for _ in range(2):
        before = tensor_lists._launch.cache_info()
        for tensors in lists:
            list(tensor_lists.prepare(tensors, tensors, (), [0], "gaussian", False))
        after = tensor_lists._launch.cache_info()
    assert after.hits - before.hits == 500 and after.misses == before.misses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_nan_stays_nan_of_any_bits_and_changes_no_other_element(dtype, rounding):
    # Quiet ones: NumPy, which interprets the kernels, warns of others.
    quiet = 0x7FC0 if dtype == torch.bfloat16 else 0x7E00
    payloads = torch.arange(40, dtype=torch.int16) + quiet
    theta = torch.randn(160).to(dtype)
    theta[::4] = torch.cat([payloads[:20], payloads[20:] | -32768]).view(dtype)
    found = {}
    for backend in BACKENDS:
        with use_backend(backend):
            found[backend] = theta.clone()
            add_noise_(found[backend], [7], [0.1], rounding=rounding)
    number = ~theta.isnan()
    assert (~number).sum() == 40
    for got in found.values():
        assert torch.equal(got.isnan(), theta.isnan())
        assert torch.equal(got[number], found["reference"][number])
