"""Logs, checkpoints and adapters that version 0.1.0 wrote (tests/helpers/old_runs.py says how)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from adazeta import from_pretrained, replay
from adazeta.adapters.attached import attached_adapters
from adazeta.directions.reparametrise import merged_state_dict
from adazeta.recording.identity import fingerprint_of_state
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import apply_log, optimizer_of
from adazeta.recording.snapshot import read_snapshot
from tests.helpers.old_runs import FOLDER, RUNS, WHOLE, base_of, trainer_of
from tests.helpers.tiny_models import tiny_llama

pytestmark = pytest.mark.parametrize("name", RUNS)


def state_at_the_end(name):
    return json.loads((FOLDER / name / "end.json").read_text())["state"]


def test_an_old_log_replays_to_the_same_bits(name):
    optimizer = replay(FOLDER / name / "probes.log", base_of(name))
    assert optimizer.steps == 6
    assert fingerprint_of_state(optimizer) == state_at_the_end(name)


def test_an_old_checkpoint_and_the_log_after_it_give_the_same_bits(name):
    log = read_log(FOLDER / name / "probes.log")
    optimizer = optimizer_of(log.header, base_of(name))
    read_snapshot(FOLDER / name / "checkpoint-3").restore(optimizer)
    assert optimizer.steps == 3
    apply_log(optimizer, log, start=3)
    assert fingerprint_of_state(optimizer) == state_at_the_end(name)


def test_an_old_run_resumes_with_the_same_bits(name, tmp_path):
    shutil.copytree(FOLDER / name, tmp_path / "run")
    trainer = trainer_of(name, tmp_path / "run")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert fingerprint_of_state(trainer.zo_optimizer) == state_at_the_end(name)


def test_what_an_old_run_saved_is_what_its_log_says(name):
    model = base_of(name)
    replay(FOLDER / name / "probes.log", model)
    if name in WHOLE:
        saved = load_file(FOLDER / name / "model.safetensors")
        computed = merged_state_dict(model)
        # Of the core of a subspace the bits are compared above; its product with the bases is
        # torch's, whose last bits go with the CPU.
        near = {"rtol": 1e-6, "atol": 1e-7} if name == "subspace" else {"rtol": 0, "atol": 0}
        for key, tensor in saved.items():
            torch.testing.assert_close(computed[key], tensor, **near)
        return
    plain = tiny_llama(hidden=16, layers=2)
    from_pretrained(plain, FOLDER / name)
    ours = dict(attached_adapters(model))
    for place, adapter in attached_adapters(plain):
        for key, parameter in adapter.named_parameters():
            assert torch.equal(parameter, dict(ours[place].named_parameters())[key])
