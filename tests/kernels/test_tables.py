"""Tables of launches: held for as long as a graph may read them, and not made while one records."""

import gc
import weakref

import pytest
import torch

from adazeta.kernels import FactorLayer, FactorPlan, add_noise_, stacked_factors, use_backend
from adazeta.kernels.gpu import factors, tensor_lists
from adazeta.kernels.tables import hold, holding_tables, refuse_while_recording


def test_tables_of_launches_outlive_their_cache():
    tensors = [torch.zeros(5), torch.zeros(7)]
    with use_backend("triton"), holding_tables() as held:
        add_noise_(tensors, [3], [0.5], offsets=[0, 8])
    [launch] = held
    records = weakref.ref(launch.records)
    tensor_lists._launch.cache_clear()
    del launch
    gc.collect()
    assert records() is not None
    held.clear()
    gc.collect()
    assert records() is None


def test_tables_of_factors_are_held():
    layer = FactorLayer(offsets=(0, 24), shapes=((1, 8, 3), (3, 5, 1)), cut=1, in_features=8,
                        out_features=5, bias=None)  # fmt: skip
    with use_backend("triton"), holding_tables() as held:
        stacked_factors(torch.randn(39), FactorPlan((layer,)))
    [(items, work)] = held
    kept = weakref.ref(items), weakref.ref(work)
    del items, work
    factors._tables.cache_clear()
    gc.collect()
    assert all(table() is not None for table in kept)


def test_the_innermost_context_holds():
    with holding_tables() as outer:
        with holding_tables() as inner:
            hold("a")
        hold("b")
    hold("nobody asks for this one")
    assert (outer, inner) == (["b"], ["a"])


@pytest.mark.parametrize("capturing", [False, True])
def test_no_table_is_made_while_a_graph_records(capturing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    if capturing:
        with pytest.raises(RuntimeError, match="run the same calls once"):
            refuse_while_recording()
    else:
        refuse_while_recording()
