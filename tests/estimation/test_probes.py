import pytest
import torch

from adazeta.estimation.probes import Probes, merge
from adazeta.support.seeds import derive_seed


def probes(seeds, coefficients, **kwargs):
    coefficients = torch.tensor(coefficients)
    defaults = {"projected": coefficients, "loss": 1.0, "evaluations": 2, "queries": 1}
    return Probes(torch.tensor(seeds), coefficients, **{**defaults, **kwargs})


def test_seeds_are_a_pure_function_and_fit_an_int64():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    assert 0 <= derive_seed(-5, 2**70) < 2**63


def test_seeds_of_neighbours_are_distinct_and_look_random():
    seeds = [derive_seed(run, step, query) for run in range(20) for step in range(50)
             for query in range(10)]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    bits = torch.tensor([[seed >> bit & 1 for bit in range(63)] for seed in seeds]).double()
    # 10,000 fair bits a column: standard deviation 0.005, six of them.
    assert (bits.mean(0) - 0.5).abs().max() < 0.03


def test_order_of_the_words_matters():
    assert derive_seed(0, 1) != derive_seed(1, 0)
    assert derive_seed(0) != derive_seed(0, 0)


def test_merge_adds_coefficients_of_equal_seeds():
    merged = merge([probes([7, 3], [2.0, 4.0]), probes([3, 9], [1.0, 8.0], dropped=1)])
    values = dict(zip(merged.seeds.tolist(), merged.coefficients.tolist(), strict=True))
    assert values == {7: 1.0, 3: 2.5, 9: 4.0}
    assert merged.evaluations == 4 and merged.dropped == 1 and len(merged.projected) == 4


def test_merge_of_nothing_names_the_remedy():
    with pytest.raises(ValueError, match="accumulate"):
        merge([])


def test_spread_and_mean():
    some = probes([1, 2], [1.0, -3.0])
    assert some.mean == 2.0
    assert some.spread == pytest.approx(8**0.5)
    assert probes([1], [5.0]).spread == 0.0
