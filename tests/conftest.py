"""Settings and fixtures that every test shares.

The environment is set before triton or transformers can be imported: both read it at import.
"""

import os
from pathlib import Path

# No test may reach the network; the tokenizer's threads do not survive the forks of a data loader.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# On CPUs of Intel MKL takes other code, with other bits, than where the runs of tests/data were
# written; docs/reliability.md tells users of the same.
_CPU = Path("/proc/cpuinfo")
if _CPU.exists() and "GenuineIntel" in _CPU.read_text():
    os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import torch  # noqa: E402

# `triton.jit` decides between compiler and interpreter when it decorates, that is at import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import gc  # noqa: E402
import random  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter  # noqa: E402

# Workers of pytest-xdist share the cores: more threads than cores make small products crawl.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if WORKER else min(2, torch.get_num_threads()))

# `with torch.device(...)` remembers at its first use which functions make tensors. Were that inside
# a test that replaces torch.empty, models "on meta" would take real memory from then on.
with torch.device("cpu"):
    torch.empty(0)

# Derandomised, so that a run is repeatable. No deadline and no check for slowness, because no test
# may depend on speed. The function-scoped fixtures here hold no state that an example could change.
hypothesis.settings.register_profile(
    "adazeta",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("adazeta")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect `gpu` tests where there is no device: a skip would read like a gap in every run."""
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same state of the global generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        with torch.no_grad():
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.fill_(float("nan"))
            if tensor.dtype == torch.bool:
                return tensor.fill_(True)
            return tensor.fill_(torch.iinfo(tensor.dtype).max)

    return wrapper


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill uninitialised memory with NaN (integers: the largest value) for the length of a test.

    Fresh pages of the operating system are zero, which hides a kernel that forgets to write part
    of its output. Only allocations made through Python are poisoned, not those inside torch's own
    operators, so library code is not disturbed. Apply with
    ``pytestmark = pytest.mark.usefixtures("poisoned_empty")``.
    """
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))
    yield


@pytest.fixture
def ended_workers() -> Iterator[None]:
    """End the processes of data loaders that a test leaves.

    A collector that finds them in a cycle closes their queues first, and then torch waits 5 s for
    each process, which nothing tells to end.
    """
    yield
    for found in gc.get_objects():
        if type(found) is _MultiProcessingDataLoaderIter:
            found._shutdown_workers()
