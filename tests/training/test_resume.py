"""Runs that stop, and go on, inside one process; tests/training/test_crashes.py kills whole
processes."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from adazeta.forward.losses import example_losses
from adazeta.recording.folder import HISTORY_NAME, LOG_NAME, STATE_NAME
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import replay
from adazeta.recording.snapshot import read_snapshot
from adazeta.recording.state_files import SnapshotError, flatten_state, restore_state
from adazeta.recording.step_record import LogError
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import (
    PLATEAU,
    Crash,
    CrashAfter,
    adapted,
    assert_same_run,
    crash_after,
    make,
    stopped,
)
from tests.helpers.tiny_models import tiny_llama


def resumed(folder, wanted=True, **options):
    trainer = make(folder, **options)
    trainer.train(resume_from_checkpoint=wanted)
    return trainer


def messages(caplog):
    return " ".join(r.getMessage() for r in caplog.records if r.name.startswith("adazeta"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "no", "eps": "auto", "warmup_steps": 2},
        {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1, "queries": 2},
        {"train_sampling_strategy": "group_by_length", "max_steps": 9, "stop": 4},
        {"train_sampling_strategy": "group_by_length", "max_steps": 9, "stop": 6},
        {"one_sided": True, "save_total_limit": 1, "weight_decay": 0.1, "query_schedule": True},
        {
            "method_settings": {"second_moment": "element"}, "distribution": "rademacher",
            "save_strategy": "epoch",
        },
        {"method": "zo-momentum", "lr_scheduler_type": "cosine"},
        {"method": "zo-adalomo", "weight_decay": 0.1, "queries": 2},
        {"method": "zo-extrapolated", "weight_decay": 0.1, "queries": 2},
        {
            "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2,
            "learning_rate": 0.5, "lr_scheduler_kwargs": {"patience": 0},
            "metric_for_best_model": "loss", "load_best_model_at_end": True, "save_steps": 2,
        },
        {**PLATEAU, "eval_steps": 2, "stop": 4},
        {**PLATEAU, "eval_steps": 2, "stop": 6, "load_best_model_at_end": True, "save_steps": 2},
        {**PLATEAU, "eval_strategy": "epoch", "max_steps": 8, "stop": 3, "eval_on_start": True},
        {**PLATEAU, "eval_strategy": "epoch", "max_steps": 8, "stop": 8, "save_strategy": "no"},
    ],
)  # fmt: skip
def test_goes_on_after_the_last_step_bit_for_bit(tmp_path, options):
    options = dict(options)
    step = options.pop("stop", 5)
    whole = make(tmp_path / "whole", **options)
    whole.train()
    stopped(tmp_path / "parts", step, **options)
    again = make(tmp_path / "parts", **options)
    begun = []
    again.add_callback(SimpleCallback(lambda state: begun.append(state.global_step)))
    again.train(resume_from_checkpoint=True)
    assert begun == list(range(step, whole.state.max_steps))
    assert_same_run(again, whole)
    keys = {"loss", "eval_loss", "learning_rate", "epoch", "step"}
    there, here = (
        [{k: e[k] for k in keys & e.keys()} for e in t.state.log_history] for t in (whole, again)
    )
    assert here[: step - 1] == there[: step - 1] and here[-1]["step"] == whole.state.max_steps
    assert again.state.best_metric == whole.state.best_metric


class SimpleCallback(TrainerCallback):
    def __init__(self, on_step_begin):
        self.call = on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        self.call(state)


@pytest.mark.parametrize("adapters", [True, False])
def test_every_trainable_parameter_is_restored(tmp_path, adapters):
    def model():
        return adapted(modules_to_save=["norm"]) if adapters else tiny_llama(layers=1).train()

    options = {"probes": "batch", "save_steps": 3}
    whole = make(tmp_path / "whole", model(), **options)
    whole.train()
    stopped(tmp_path / "parts", model=model(), **options)
    again = resumed(tmp_path / "parts", model=model(), **options)
    assert_same_run(again, whole)


def test_nothing_is_pickled(tmp_path):
    make(tmp_path).train()
    found = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert found <= {".json", ".jsonl", ".safetensors", ".log", ".md", ""}


@pytest.mark.parametrize(
    "name, damage",
    [
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("model.safetensors", lambda data: data[: len(data) // 2]),
        ("zeroth_order.safetensors", lambda data: b""),
        (STATE_NAME, lambda data: data[:40]),
        (STATE_NAME, lambda data: b"[" * 100_000),
        (STATE_NAME, lambda data: data.replace(b'"crc32": ', b'"crc32": 1')),
        ("trainer_state.json", lambda data: data[:99]),
        ("trainer_state.json", lambda data: b""),
    ],
)
def test_a_damaged_checkpoint_is_left_out(tmp_path, whole, caplog, name, damage):
    stopped(tmp_path)
    for number in (2, 4):
        path = tmp_path / f"checkpoint-{number}" / name
        path.write_bytes(damage(path.read_bytes()))
        if number == 2 and name != STATE_NAME:
            path.unlink()
    assert_same_run(resumed(tmp_path), whole)
    if name != "trainer_state.json":
        assert "checkpoint-4" in messages(caplog) and "checkpoint-2" in messages(caplog)


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(tmp_path):
    stopped(tmp_path)
    path = tmp_path / "checkpoint-4" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SnapshotError, match="model.safetensors is damaged"):
        resumed(tmp_path, str(path.parent))
    with pytest.raises(SnapshotError, match="lacks .*zeroth_order.json"):
        resumed(tmp_path, str(tmp_path))
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(SnapshotError, match="lacks trainer_state.json"):
        resumed(tmp_path, str(tmp_path / "checkpoint-2"))


def test_goes_back_to_a_checkpoint_that_is_named(tmp_path, whole, caplog):
    make(tmp_path).train()
    before = (tmp_path / LOG_NAME).read_bytes()
    again = resumed(tmp_path, str(tmp_path / "checkpoint-2"))
    assert_same_run(again, whole)
    assert (tmp_path / f"previous-1-{LOG_NAME}").read_bytes() == before
    assert "back to step 2" in messages(caplog)


def test_goes_over_to_the_checkpoint_of_another_run(tmp_path, whole):
    first = stopped(tmp_path / "first")
    source = str(tmp_path / "first" / "checkpoint-4")
    second = make(tmp_path / "second")
    second.add_callback(CrashAfter(5))
    with pytest.raises(Crash):
        second.train(resume_from_checkpoint=source)
    log = read_log(tmp_path / "second" / LOG_NAME)
    assert (log.first_step, len(log)) == (4, 1)
    last = resumed(tmp_path / "second")
    assert_same_bits(last.model, bits(whole.model))
    with pytest.raises(LogError, match="after 4 steps"):
        replay(log, adapted())
    assert first.zo_optimizer.steps == 5


def test_a_run_that_is_done_does_no_more_steps(tmp_path, whole):
    make(tmp_path).train()
    again = make(tmp_path)
    output = again.train(resume_from_checkpoint=True)
    assert output.global_step == 6 and "train_loss" in output.metrics
    assert_same_run(again, whole)
    longer = make(tmp_path, max_steps=8)
    assert longer.train(resume_from_checkpoint=True).global_step == 8


def test_a_new_run_keeps_the_log_of_the_old_one(tmp_path, whole):
    stopped(tmp_path, step=3)
    old = (tmp_path / LOG_NAME).read_bytes()
    trainer = make(tmp_path)
    trainer.train()
    assert_same_run(trainer, whole)
    assert (tmp_path / f"previous-1-{LOG_NAME}").read_bytes() == old
    assert (tmp_path / f"previous-1-{HISTORY_NAME}").exists()


def test_checkpoints_of_another_run_are_left_out(tmp_path, whole, caplog):
    make(tmp_path, learning_rate=0.5).train()
    trainer = make(tmp_path, save_strategy="no")
    crash_after(trainer, 3)
    assert_same_run(resumed(tmp_path), whole)
    assert "of another run" in messages(caplog)


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a probe log nor a whole checkpoint"):
        resumed(tmp_path)


@pytest.mark.parametrize(
    "model, options, message",
    [
        ({"rank": 3}, {}, "trainable parameter 1 is .*cores.0 float32 .1, 2, 2. at 8 there and"),
        ({}, {"distribution": "rademacher"}, "directions are 'gaussian', here they are 'rad"),
        ({}, {"seed": 4}, "its seed is 3, here it is 4"),
        ({}, {"method": "mezo"}, "its optimizer is ZOAdam, here it is ZOSGD"),
        ({"scale": 4.0}, {}, "its adapters have scale=1.0, here they have 4.0"),
        ({"activation": "linear"}, {}, "its adapters have activation='relu', here they have 'lin"),
    ],
)
def test_a_log_of_another_run_is_refused(tmp_path, model, options, message):
    stopped(tmp_path, save_strategy="no")
    before = (tmp_path / LOG_NAME).read_bytes()
    with pytest.raises(LogError, match=message):
        resumed(tmp_path, model=adapted(**model), **options)
    assert (tmp_path / LOG_NAME).read_bytes() == before


def test_another_base_or_other_initial_values_are_refused(tmp_path):
    stopped(tmp_path, save_strategy="no")
    other = adapted()
    other.get_input_embeddings().weight.data[5] += 1
    with pytest.raises(LogError, match="has other weights than this one"):
        resumed(tmp_path, model=other)
    moved = adapted()
    next(p for p in moved.parameters() if p.requires_grad).data[0] += 1
    with pytest.raises(LogError, match="begins with other values of the trainable parameters"):
        resumed(tmp_path, model=moved)


def test_changed_settings_are_reported_and_stay_replayable(tmp_path, caplog):
    stopped(tmp_path)
    trainer = resumed(tmp_path, learning_rate=2e-2, adam_beta1=0.5, queries=2)
    said = messages(caplog)
    assert "betas.0 was 0.9 and is 0.5" in said and "estimator.queries was 1 and is 2" in said
    assert "learning rate of step 4 was" in said
    model = adapted()
    replay(tmp_path / LOG_NAME, model)
    assert_same_bits(model, bits(trainer.model))


def test_losses_that_are_not_finite_are_logged_and_replayed(tmp_path):
    calls = []

    def losses(model, inputs):
        values, outputs = example_losses(model, inputs)
        calls.append(1)
        if len(calls) > 14:  # after eps was measured
            values[: len(calls) % 3] = float("nan")
        return values, outputs

    trainer = make(tmp_path, losses=losses)
    trainer.train()
    log = read_log(tmp_path / LOG_NAME)
    assert any(r.dropped for r in log) and any(r.seeds for r in log)
    model = adapted()
    replay(log, model)
    assert_same_bits(model, bits(trainer.model))


def test_a_full_disk_stops_the_run_with_parameters_as_the_log_says(tmp_path, monkeypatch, whole):
    trainer, real, calls = make(tmp_path), os.fsync, []

    def full(handle):
        if trainer.log_of_run is not None and handle == trainer.log_of_run._file:
            calls.append(1)
            if len(calls) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="step 3 could not be logged"):
            trainer.train()
    model = adapted()
    replay(tmp_path / LOG_NAME, model)
    assert_same_bits(trainer.model, bits(model))
    assert_same_run(resumed(tmp_path), whole)


def test_without_a_log_the_checkpoints_serve(tmp_path, whole):
    stopped(tmp_path, probe_log=False)
    assert not (tmp_path / LOG_NAME).exists()
    again = resumed(tmp_path, probe_log=False)
    assert_same_bits(again.model, bits(whole.model))
    assert read_snapshot(tmp_path / "checkpoint-6").records is None


def test_a_log_can_be_turned_off_and_on_between(tmp_path, whole):
    stopped(tmp_path)
    trainer = make(tmp_path, probe_log=False, save_strategy="no")
    trainer.train(resume_from_checkpoint=True)
    assert_same_bits(trainer.model, bits(whole.model))
    assert not (tmp_path / LOG_NAME).exists() and (tmp_path / f"previous-1-{LOG_NAME}").exists()


def test_history_survives_a_line_that_was_not_finished(tmp_path):
    stopped(tmp_path, logging_steps=1)
    path = tmp_path / HISTORY_NAME
    whole_lines = path.read_text()
    path.write_text(whole_lines + '{"loss": 1.0, "st')
    trainer = resumed(tmp_path, logging_steps=1)
    assert [e["step"] for e in trainer.state.log_history] == [1, 2, 3, 4, 6, 6]
    assert path.read_text().startswith(whole_lines)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 6, 6]


def test_state_trees_come_back():
    state = {0: {"a": torch.ones(2), "n": 3}, "t": (1.5, [None, True, {"x": "y"}]), "nan": 1e400}
    tensors = {}
    tree = json.loads(json.dumps(flatten_state(state, tensors)))
    again = restore_state(tree, tensors)
    assert str(again) == str(state)
    with pytest.raises(TypeError, match="/a/0 is a SimpleNamespace"):
        flatten_state({"a": [SimpleNamespace()]}, {})
    with pytest.raises(ValueError, match="not a saved state"):
        restore_state({"tensor": "gone"}, {})
