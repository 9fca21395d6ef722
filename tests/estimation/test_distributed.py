import multiprocessing
import traceback

import pytest
import torch
import torch.distributed as dist
from torch import nn

from adazeta import ParameterSpace, RandomizedGradientEstimator
from adazeta.estimation.distributed import RankError, Ranks, check_same, digest_of, ranks
from adazeta.estimation.probes import merge
from adazeta.optim.conservative import ConservativeSGD
from adazeta.parameters.dropping import Droppable
from tests.helpers.toy import Regression, StackedAffine, regression_batch


def _child(work, rank, size, store, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        queue.put((rank, work(rank)))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
    finally:
        dist.destroy_process_group()


def together(work, size, folder):
    """Run ``work(rank)`` in ``size`` processes and return what each returned."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = [(work, rank, size, folder / "store", queue) for rank in range(size)]
    children = [context.Process(target=_child, args=each) for each in arguments]
    for child in children:
        child.start()
    found = dict(queue.get(timeout=60) for _ in children)
    for child in children:
        child.join()
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize("size, shards", [(1, 1), (2, 1), (3, 1), (4, 2), (5, 5), (6, 2), (7, 1)])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_shares_are_whole_forwards_of_a_single_process(size, shards, count, most):
    shares = [Ranks(rank, size, shards).share(count, most) for rank in range(size)]
    for shard in range(shards):
        mine = shares[shard::shards]
        assert [job for share in mine for job in share] == list(range(count))
        busy = [len(share) for share in mine if share]
        forwards = -(-count // min(most, -(-count // (size // shards))))
        assert len(busy) == min(forwards, size // shards)  # nobody idles who could work
        if -(-count // most) >= size // shards:  # the forwards are those of a single process
            one, done = set(), 0
            while done < count:
                one.add(done)
                done += -(-(count - done) // -(-(count - done) // most))
            assert {share.start for share in mine if share} <= one


def test_a_number_of_shards_that_does_not_divide_the_processes_is_refused():
    with pytest.raises(ValueError, match="2 data shards do not divide 3 processes"):
        Ranks(0, 3, 2)
    with pytest.raises(ValueError, match="4 data shards do not divide 1 processes"):
        ranks(4)


def test_a_single_process_exchanges_with_itself():
    alone, value = ranks(), torch.rand(3, 2)
    assert alone == Ranks(0, 1)
    assert alone.exchange("here", value)[0] is value
    assert alone.collect(value, "here")[0] is value
    assert alone.average([1.0, 2.0], 5, "here") == [1.0, 2.0]


def test_values_of_any_length_keep_their_bits(tmp_path):
    values = [0.1, float("inf"), -0.0, 5e-324, 1 / 3]

    def work(rank):
        where = ranks()
        sent = [values * length for length in ((1, 300), (300, 1), (50, 50), (0, 40))[rank]]
        return [where.exchange("a", one) for one in sent]

    lengths = ((1, 300), (300, 1), (50, 50), (0, 40))
    expected = [[values * length[turn] for length in lengths] for turn in (0, 1)]
    found = together(work, 4, tmp_path)
    assert found == [expected] * 4
    assert str(found[0][0][0][2]) == "-0.0"


def test_losses_that_are_not_numbers_travel(tmp_path):
    def work(rank):
        where = ranks(1)
        mine = torch.tensor([[1.0, torch.nan], [torch.inf, 2.0]])[rank:][:1].double()
        return [table.tolist() for table in where.collect(mine, "here")]

    for found in together(work, 2, tmp_path):
        assert str(found) == "[[[1.0, nan], [inf, 2.0]]]"


def test_processes_that_went_different_ways_are_told(tmp_path):
    def work(rank):
        with pytest.raises(RankError, match="rank [01] is at step [34].*rank [01] at step"):
            ranks().exchange(f"step {3 + rank}", None)
        return "told"

    assert together(work, 2, tmp_path) == ["told"] * 2


def test_a_process_that_fails_says_why(tmp_path):
    def work(rank):
        where = ranks()
        if rank == 1:
            with pytest.raises(KeyError), where.announcing():
                raise KeyError("é" * 2000)
            return "failed"
        with pytest.raises(RankError, match="stops at here, since rank 1 has failed: KeyError: 'é"):
            where.exchange("here", list(range(1000)))
        return "told"

    assert together(work, 3, tmp_path) == ["told", "failed", "told"]


def test_a_process_that_dies_is_noticed(tmp_path):
    def work(rank):
        where = ranks()
        where.exchange("here", None)
        if rank == 1:
            return "died"
        with pytest.raises(RankError, match="rank 0 of 2 lost the others.*resume_from_checkpoint"):
            where.exchange("there", None)
        return "noticed"

    assert together(work, 2, tmp_path) == ["noticed", "died"]


def test_differences_are_named():
    check_same([{"seed": 1, "batches": 2}] * 3, "at the start")
    with pytest.raises(RankError, match="at the start in batches: rank 0 has 2, rank 1 has 5"):
        check_same([{"seed": 1, "batches": 2}, {"seed": 1, "batches": 5}], "at the start")


def test_the_digest_of_a_batch_sees_every_tensor():
    batch = {"x": torch.arange(7), "y": torch.ones(7, 0), "names": ["a"]}
    assert digest_of(batch) == digest_of(dict(reversed(batch.items())))
    for other in ({"x": torch.arange(7) + 1}, {"z": torch.arange(7)}):
        assert digest_of({**batch, **other}) != digest_of(batch)


class Residual(nn.Module, Droppable):
    """Adds something to its input, and is left out of every other estimate."""

    drop = 0.5

    def __init__(self, seed):
        super().__init__()
        self.layer = StackedAffine(5, 5, seed=seed)

    def forward(self, x):
        return x + self.scale * self.layer(x) if self.enabled else x


class Dropping(Regression):
    def __init__(self):
        super().__init__()
        self.added = nn.ModuleList(Residual(seed) for seed in range(4))

    def losses(self, batch):
        x = batch["x"]
        for module in self.added:
            x = module(x)
        return super().losses({**batch, "x": x})


def estimate(where, batch, kind=Regression, **options):
    model = kind()
    estimator = RandomizedGradientEstimator(
        ParameterSpace(model), eps=1e-2, check_eps=False, seed=7, **options
    )
    estimator.ranks = where
    return estimator(model.losses, batch, step=3, micro_step=0)


def numbers(probes):
    return (
        probes.seeds.tolist(), probes.coefficients.tolist(), probes.projected.tolist(),
        probes.loss, probes.evaluations, probes.dropped,
    )  # fmt: skip


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


@pytest.mark.parametrize("options", [
    {"queries": 3}, {"queries": 1, "one_sided": True}, {"queries": 2, "probes": "example"},
    {"queries": 5, "probes": 2, "probes_per_forward": 2},
])  # fmt: skip
def test_queries_over_processes_give_the_same_bits(tmp_path, options):
    batch = regression_batch()
    alone = numbers(estimate(Ranks(), batch, **options))
    found = together(lambda rank: numbers(estimate(ranks(1), batch, **options)), 4, tmp_path)
    assert found == [alone] * 4


def test_all_processes_leave_the_same_adapters_out(tmp_path):
    batch = regression_batch()
    alone = numbers(estimate(Ranks(), batch, Dropping, queries=3))
    found = together(
        lambda rank: numbers(estimate(ranks(1), batch, Dropping, queries=3)), 3, tmp_path
    )
    assert found == [alone] * 3

    class Whole(Dropping):
        def __init__(self):
            super().__init__()
            for module in self.added:
                module.drop = 0.0

    assert numbers(estimate(Ranks(), batch, Whole, queries=3))[2] != alone[2]


@pytest.mark.parametrize("probes", ["batch", "example"])
def test_shards_of_unequal_size_count_by_their_examples(tmp_path, probes):
    batch, cuts = regression_batch(7), (slice(0, 4), slice(4, 7))
    options = {"queries": 2, "probes": probes}

    def work(rank):
        probes = estimate(ranks(), part(batch, cuts[rank]), **options)
        return numbers(probes)

    first, second = together(work, 2, tmp_path)
    assert first == second
    whole = numbers(estimate(Ranks(), batch, **options))
    order = sorted(range(len(whole[0])), key=lambda place: whole[0][place])
    assert first[0] == [whole[0][place] for place in order]
    # Losses near 1, each rounded to float32 (6e-8) in batches of other sizes, over 2 eps = 0.02.
    expected = [whole[1][place] for place in order]
    assert first[1] == pytest.approx(expected, rel=1e-5, abs=2e-5)
    assert first[3] == pytest.approx(whole[3], rel=1e-6)


def test_weights_of_equal_parts_change_nothing():
    parts = [estimate(Ranks(), regression_batch(rows), queries=2) for rows in (4, 5, 6)]
    assert numbers(merge(parts, [3, 3, 3])) == numbers(merge(parts))


def test_the_conservative_step_chooses_alike(tmp_path):
    batch = regression_batch(8)

    def work(rank):
        model = Regression()
        optimizer = ConservativeSGD(model, lr=0.5, eps=1e-2, check_eps=False)
        optimizer.estimator.ranks = ranks()
        mine = part(batch, slice(4 * rank, 4 * rank + 4))
        chosen = []
        for _ in range(4):
            optimizer.step(model.losses, mine)
            chosen.append(optimizer.param_groups[0]["choice"])
        return chosen, [p.tolist() for p in model.parameters()]

    first, second = together(work, 2, tmp_path)
    assert first == second
