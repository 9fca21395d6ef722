"""Training in several processes, compared bit for bit with a single one."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from adazeta import ZOTrainingArguments, replay
from adazeta.cli import main
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from adazeta.training import arguments
from tests.helpers.commands import TEXTS, settings
from tests.helpers.paths import ROOT
from tests.helpers.ranks_server import make_model, make_trainer
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

QUERIES = {"shard": "queries", "queries": 2}
ADAM = {
    "shard": "queries", "queries": 2, "probes": "example", "eps": "auto", "weight_decay": 0.1,
    "probes_per_forward": "2", "rows": 14,
}  # fmt: skip
ADALOMO = {"shard": "queries", "queries": 2, "method": "zo-adalomo"}
AHEAD = {"shard": "queries", "queries": 2, "method": "zo-extrapolated"}
SGD = {
    "shard": "queries", "queries": 3, "method": "zo-momentum", "one_sided": True,
    "gradient_accumulation_steps": 2, "rows": 15,
}  # fmt: skip


class Server:
    """Asks :mod:`tests.helpers.ranks_server` for runs."""

    def __init__(self, folder):
        self.folder, self.runs = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ranks_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, size, options, folder=None, **request):
        self.runs += 1
        folder = folder or self.folder / str(self.runs)
        request = {"size": size, "folder": str(folder), "options": options, **request}
        for rank in range(size):
            Path(f"{folder}-{rank}.json").unlink(missing_ok=True)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Outcome(folder, size, **json.loads(self.process.stdout.readline()))


class Outcome:
    """How a run ended: the exit status, output and result of each rank, and the log."""

    def __init__(self, folder, size, statuses, seconds):
        self.folder, self.statuses, self.seconds = folder, statuses, seconds
        self.output = [Path(f"{folder}-{rank}.txt").read_text() for rank in range(size)]
        self.results = [
            json.loads(path.read_text()) if path.exists() else None
            for path in (Path(f"{folder}-{rank}.json") for rank in range(size))
        ]

    @property
    def log(self):
        return (self.folder / LOG_NAME).read_bytes()

    @property
    def parameters(self):
        """The parameters that all ranks hold, as the bits of each element."""
        assert set(self.statuses) == {0}, "\n".join(self.output)
        first = self.results[0]["parameters"]
        assert all(result["parameters"] == first for result in self.results)
        return first


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("runs"))
    yield server
    server.process.stdin.close()
    server.process.stdout.close()
    server.process.wait()


@pytest.fixture(scope="module")
def alone(server):
    return server.run(1, QUERIES)


@pytest.mark.parametrize(
    "options, sizes",
    [(QUERIES, (2, 3, 4)), (ADAM, (2, 3, 4)), (SGD, (2, 3, 4)), (ADALOMO, (2,)), (AHEAD, (2,))],
    ids=["plain", "adam", "sgd", "adalomo", "extrapolated"],
)
def test_queries_over_processes_are_a_single_process(server, options, sizes):
    one = server.run(1, options)
    for size in sizes:
        run = server.run(size, options)
        assert run.parameters == one.parameters
        assert run.log == one.log
        assert run.results[0]["batch"] == one.results[0]["batch"]
        assert "DistributedDataParallel" not in {each["wrapped"] for each in run.results}


@pytest.mark.parametrize(
    "options",
    [
        {"rewards": {"temperature": 0.8}, "queries": 2},
        {"rewards": {"adapt": "answer"}, "queries": 3, "probes": "batch", "shaping": "rank"},
    ],
    ids=["sampled", "answers"],
)
def test_rewards_over_processes_are_those_of_a_single_process(server, options):
    options = {"shard": "queries", **options}
    one = server.run(1, options)
    for size in (2, 3):
        run = server.run(size, options)
        assert run.parameters == one.parameters
        assert run.log == one.log


def test_shards_of_the_data_are_shaped_as_one_batch(server):
    options = {"rewards": {}, "queries": 2, "rows": 24}
    data, grid = server.run(2, options), server.run(4, options | {"shard": "2"})
    assert data.parameters == grid.parameters
    assert data.log == grid.log
    assert len(next(iter(read_log(data.folder / LOG_NAME))).seeds) == 2 * 8


def test_more_processes_than_evaluations(server):
    options = {"shard": "queries", "queries": 1, "max_steps": 3}
    assert server.run(4, options).log == server.run(1, options).log


def test_losses_that_are_not_finite_are_dropped_alike(server):
    one, run = (server.run(size, QUERIES | {"queries": 4}, nan=True) for size in (1, 3))
    assert run.parameters == one.parameters
    assert run.log == one.log
    assert sum(record.dropped for record in read_log(run.folder / LOG_NAME)) > 0


@pytest.mark.parametrize("probes", ["batch", "example"])
def test_shards_of_the_data_are_micro_batches(server, probes):
    # The micro-batches of a step go to the ranks in turn, as a single process takes them.
    options = {"queries": 2, "probes": probes, "rows": 24, "max_steps": 4}
    one = server.run(1, options | {"gradient_accumulation_steps": 2})
    data = server.run(2, options)
    grid = server.run(4, options | {"shard": "2"})
    assert data.parameters == grid.parameters == one.parameters
    assert data.log == grid.log
    assert data.results[0]["batch"] == grid.results[0]["batch"] == 8
    for record, other in zip(*(read_log(r.folder / LOG_NAME) for r in (data, one)), strict=True):
        assert record.seeds == other.seeds
        assert record.coefficients == other.coefficients


def test_batches_that_cannot_be_dealt_out_evenly_are_refused(server):
    options = {"rows": 9, "accelerator_config": {"even_batches": False}}
    run = server.run(2, options)
    assert run.statuses == [1, 1]
    assert all("number of batches: rank 0 has 2, rank 1 has 1" in text for text in run.output)


def test_one_log_of_four_processes_replays_to_the_same_bits(server):
    run = server.run(4, ADAM)
    assert [path.name for path in run.folder.rglob("*.log")] == [LOG_NAME]
    assert not list(run.folder.rglob("rng_state*"))
    optimizer = replay(run.folder / LOG_NAME, make_model())
    values = [p.detach().reshape(-1) for p in optimizer.space.parameters]
    assert torch.cat(values).view(torch.int32).tolist() == run.parameters


@pytest.mark.parametrize("kind, rank, said", [
    ("killed", 0, "lost the others"),
    ("killed", 2, "lost the others"),
    ("raises", 1, "rank 1 has failed: ValueError: no such word: 'mischief'"),
    ("disk_full", 0, "rank 0 has failed: OSError: [Errno 28] step 2 could not be logged"),
])  # fmt: skip
def test_a_rank_that_fails_stops_the_others_and_the_run_can_go_on(server, alone, kind, rank, said):
    run = server.run(3, QUERIES, mischief={"rank": rank, "kind": kind})
    assert 0 not in run.statuses
    # Those that live end with the error, and were not killed for hanging.
    others = [other for other in range(3) if other != rank]
    assert all(run.statuses[other] == 1 for other in others)
    assert all(said in run.output[other] for other in others)
    assert len(read_log(run.folder / LOG_NAME)) == 2
    resumed = server.run(2 if rank else 1, QUERIES, run.folder, resume=True)
    assert resumed.parameters == alone.parameters
    assert resumed.log == alone.log


@pytest.mark.parametrize("kind, step, done", [
    ("terminated", 2, 3),
    ("terminated_after_the_update", 2, 2),
    ("terminated_after_the_update", 5, 5),
])  # fmt: skip
def test_sigterm_to_one_rank_ends_all_after_the_same_step(server, alone, kind, step, done):
    run = server.run(4, QUERIES, mischief={"rank": 1, "kind": kind, "step": step})
    assert run.statuses == [143] * 4
    assert len(read_log(run.folder / LOG_NAME)) == done
    assert server.run(1, QUERIES, run.folder, resume=True).log == alone.log


def test_memory_that_runs_out_on_one_rank_makes_all_stack_less(server):
    options = {"shard": "queries", "queries": 4, "probes_per_forward": "4", "max_steps": 4}
    run = server.run(2, options, mischief={"rank": 1, "kind": "out_of_memory", "step": 1})
    assert run.parameters
    assert "memory ran out with 4 evaluations" in run.output[1]
    assert [result["together"] for result in run.results] == [2, 2]


@pytest.mark.parametrize("kind, said", [
    ("other_start", "at the start in the trainable parameters"),
    ("other_base", "at the start in the base model"),
    ("other_data", "at the start in the number of batches: rank 0 has 3, rank 1 has 1"),
    ("other_rate", "at the start in the optimizer's settings"),
    ("other_batch", "at step 0, micro-batch 0 in the batch"),
    ("drifts", "after step 2 in the trainable parameters: rank 0 has"),
])  # fmt: skip
def test_processes_that_are_not_alike_are_told(server, kind, said):
    run = server.run(2, QUERIES, mischief={"rank": 1, "kind": kind})
    assert run.statuses == [1, 1]
    assert all(said in text for text in run.output)


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    # What --multi_gpu stands for is one process a device; use_cpu makes that gloo on processors.
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--main_process_port=0",
                   "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
                   "--dynamo_backend=no"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("launcher", "asked"), [("torchrun", True), ("torchrun", False), ("accelerate", True)]
)
def test_launchers_train_from_the_command_line(tmp_path, launcher, asked):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS * 4]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    values = {**settings(tmp_path), "use_cpu": asked, "max_steps": 3, "save_strategy": "no"}
    hidden = {} if asked else {"CUDA_VISIBLE_DEVICES": ""}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    launched = subprocess.run(
        [
            sys.executable, "-m", *LAUNCHERS[launcher],
            "-m", "adazeta.cli", "train", str(tmp_path / "config.yaml"), "--shard", "queries",
            "--output_dir", str(tmp_path / "two"),
        ],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **hidden},
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count(" parameters: ") == 1
    one = tmp_path / "one"
    command = ["train", str(tmp_path / "config.yaml"), "--use_cpu", "--output_dir", str(one)]
    assert main(command) == 0
    assert (tmp_path / "two" / LOG_NAME).read_bytes() == (one / LOG_NAME).read_bytes()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="they would be connected")
def test_processes_that_would_not_be_connected_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **kwargs: None)
    # An accelerator between whose processes accelerate has no connection, as Apple's.
    accelerator = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(arguments, "torch", SimpleNamespace(accelerator=accelerator))
    with pytest.raises(ValueError, match="2 processes were started.* set use_cpu=True"):
        ZOTrainingArguments(output_dir=str(tmp_path), dataloader_pin_memory=False)


def test_a_process_that_sees_several_gpus_uses_one(tmp_path, monkeypatch, caplog):
    prepare = ZOTrainingArguments.__post_init__

    def with_two_gpus(arguments):
        prepare(arguments)
        arguments._n_gpu = 2

    monkeypatch.setattr(ZOTrainingArguments, "__post_init__", with_two_gpus)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tmp_path)
    assert trainer.args.n_gpu == 1
    assert trainer._train_batch_size == 4
    assert "torchrun --nproc_per_node=2" in caplog.text
