import multiprocessing
import traceback

import pytest
import torch
import torch.distributed as dist

from adazeta.distributed import Ranks, ranks, same_everywhere


def _child(work, rank, size, store, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        queue.put((rank, work(ranks())))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
    finally:
        dist.destroy_process_group()


def together(work, size, folder):
    """Run ``work(ranks)`` in ``size`` processes and return what each returned."""
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


@pytest.mark.parametrize("size, count", [(2, 5), (3, 3), (4, 2), (3, 7)])
def test_jobs_come_back_in_their_order(tmp_path, size, count):
    def work(where):
        assert where.size == size
        mine = torch.tensor([[job * 10.0, job] for job in where.mine(count)]).view(-1, 2)
        return where.gather_jobs(mine.double(), count).tolist()

    expected = [[job * 10.0, job] for job in range(count)]
    assert together(work, size, tmp_path) == [expected] * size


def test_a_single_process_gathers_from_itself():
    alone = ranks()
    values = torch.tensor([1.0, 2.0])
    assert alone == Ranks(0, 1)
    assert alone.gather(values).tolist() == [[1.0, 2.0]]
    assert alone.gather_jobs(values, 2) is values
    same_everywhere([values], alone, 3)


def test_processes_that_drift_apart_are_told(tmp_path):
    def work(where):
        values = torch.full((5,), float(where.rank == 1))
        same_everywhere([torch.ones(3)], where, 1)
        with pytest.raises(RuntimeError, match="after step 7.*rank 0.*rank 1"):
            same_everywhere([values], where, 7)
        return "told"

    assert together(work, 2, tmp_path) == ["told"] * 2


def test_a_process_that_dies_is_noticed(tmp_path):
    def work(where):
        where.gather(torch.zeros(1))
        if where.rank == 1:
            return "died"
        with pytest.raises(RuntimeError, match="rank 0 of 2 lost the others.*resume"):
            where.gather(torch.zeros(1))
        return "noticed"

    assert together(work, 2, tmp_path) == ["noticed", "died"]
