"""Training is killed, resumed, and compared with training that was not."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from tests.helpers.paths import ROOT

KILLS = 50


class Server:
    """Asks :mod:`tests.helpers.crash_server` for runs."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.crash_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, folder, kind, **request):
        request = {"folder": str(folder), "kind": kind, **request}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        answer["output"] = Path(f"{folder}.txt").read_text()
        answer["applied"] = [int(value) for key, value in answer["said"] if key == "step"]
        answer |= {key: value for key, value in answer["said"] if key != "step"}
        return answer


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.stdout.close()
    server.process.wait()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run of each kind that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    runs = {kind: server.run(folder / kind, kind) for kind in ("adam", "sgd")}
    for kind, run in runs.items():
        assert run["status"] == 0, run["output"]
        run["log"] = (folder / kind / LOG_NAME).read_bytes()
    return runs


def logged(folder):
    path = folder / LOG_NAME
    return len(read_log(path)) if path.exists() else 0


def finish(server, folder, kind, whole):
    """Resume to the end; the result is that of the run that was never killed, bit for bit."""
    steps = logged(folder)
    last = server.run(folder, kind)
    assert last["status"] == 0, last["output"]
    assert int(last["start"]) == steps
    assert last["applied"] == list(range(steps, 7))
    assert last["state"] == whole[kind]["state"]  # digest of parameters and optimizer state
    assert last["evaluations"] == whole[kind]["evaluations"]
    assert (folder / LOG_NAME).read_bytes() == whole[kind]["log"]


def test_killed_at_fifty_moments(server, whole, tmp_path):
    kill_at_moments(server, whole, tmp_path, ("adam", "sgd"), KILLS)


@pytest.mark.slow
def test_a_run_with_rewards_is_killed_at_twenty_moments(server, tmp_path):
    run = server.run(tmp_path / "whole", "rewards")
    assert run["status"] == 0, run["output"]
    run["log"] = (tmp_path / "whole" / LOG_NAME).read_bytes()
    kill_at_moments(server, {"rewards": run}, tmp_path, ("rewards",), 20)


def kill_at_moments(server, whole, tmp_path, kinds, kills):
    draw = random.Random(5)
    killed, runs = 0, 0
    while killed < kills:
        kind, folder = kinds[runs % len(kinds)], tmp_path / str(runs)
        runs += 1
        again = True
        while again and killed < kills:
            before = logged(folder)
            if draw.random() < 0.25:
                when = {"after": draw.uniform(0, whole[kind]["seconds"])}
            else:
                when = {"instant": draw.randint(1, int(whole[kind]["instants"]))}
            run = server.run(folder, kind, seed=killed, **when)
            if run["status"] == 0:  # it was done before
                break
            assert run["status"] == signal.SIGKILL, run["output"]
            killed += 1
            # No step that was applied is missing in the log, nor more than one not yet applied.
            done = max(run["applied"], default=before - 1) + 1
            assert done <= logged(folder) <= done + 1
            again = draw.random() < 0.3
        finish(server, folder, kind, whole)


def test_killed_at_every_instant_of_a_step_and_its_checkpoint(server, whole, tmp_path):
    # Steps 3 and 4 with the snapshot between them: about every instant that a run can have.
    total = int(whole["sgd"]["instants"])
    for instant in range(total // 3, total // 3 + 12):
        folder = tmp_path / str(instant)
        assert server.run(folder, "sgd", instant=instant)["status"] == signal.SIGKILL
        finish(server, folder, "sgd", whole)


def test_sigterm_finishes_the_step_and_leaves_with_143(server, whole, tmp_path):
    draw = random.Random(2)
    for trial in range(4):
        folder = tmp_path / str(trial)
        when = draw.uniform(0.2, 0.9) * whole["adam"]["seconds"]
        run = server.run(folder, "adam", after=when, signal=signal.SIGTERM)
        if run["status"] == 0:
            continue
        status = os.waitstatus_to_exitcode(run["status"])
        assert status in (143, -signal.SIGTERM), run["output"]
        if run["applied"]:
            assert logged(folder) == max(run["applied"]) + 1
            # Before and after training SIGTERM does what it does without a handler.
            assert status == 143 or run["applied"] == list(range(7))
        finish(server, folder, "adam", whole)
