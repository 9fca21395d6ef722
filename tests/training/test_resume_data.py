"""Runs that stop and go on: evaluations that were due, and data with random parts."""

import random

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, default_data_collator

from adazeta.forward.losses import example_losses
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import replay
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import (
    PLATEAU,
    Crash,
    adapted,
    assert_same_run,
    causal_data,
    crash_after,
    make,
    stopped,
)


def test_an_evaluation_of_several_sets_is_made_up_for(tmp_path, monkeypatch):
    sets = {"first": causal_data(4), "second": causal_data(8)[4:]}
    options = {**PLATEAU, "eval_steps": 2, "metric_for_best_model": "first_loss"}

    def make_with_sets(folder):
        trainer = make(folder, **options)
        trainer.eval_dataset = sets
        return trainer

    whole = make_with_sets(tmp_path / "whole")
    whole.train()
    parts = make_with_sets(tmp_path / "parts")
    loop, calls = parts.evaluation_loop, []

    def second_set_crashes(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise Crash
        return loop(*args, **kwargs)

    monkeypatch.setattr(parts, "evaluation_loop", second_set_crashes)
    with pytest.raises(Crash):
        parts.train()
    again = make_with_sets(tmp_path / "parts")
    again.train(resume_from_checkpoint=True)
    assert_same_run(again, whole)
    assert again.state.best_metric == whole.state.best_metric


def own_losses(model, inputs):
    return example_losses(model, inputs)


@pytest.mark.parametrize("where", ["collator", "loss"])
def test_a_batch_that_fails_leaves_a_log_to_resume_from(tmp_path, where):
    # A loss of one's own is tried less than the default, and the log holds what was found.
    losses = own_losses if where == "loss" else example_losses
    whole = make(tmp_path / "whole", losses=losses)
    whole.train()
    calls = []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == (5 if where == "collator" else 20):
            raise ValueError("a bad example")
        return (
            default_data_collator(*arguments) if where == "collator" else example_losses(*arguments)
        )

    trainer = make(tmp_path / "run", losses=failing if where == "loss" else example_losses)
    if where == "collator":
        trainer.data_collator = failing
    with pytest.raises(ValueError, match="a bad example"):
        trainer.train()
    log = read_log(tmp_path / "run" / LOG_NAME)
    assert 0 < len(log) == trainer.state.global_step < 6
    model = adapted()
    replay(log, model)
    assert_same_bits(trainer.model, bits(model))
    again = make(tmp_path / "run", losses=losses)
    again.train(resume_from_checkpoint=True)
    assert_same_run(again, whole)


def test_memory_that_runs_out_is_logged_and_resumed(tmp_path, caplog):
    options = {"queries": 2, "probes_per_forward": "4"}

    def limited(model, inputs):
        if len(inputs["input_ids"]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return example_losses(model, inputs)

    whole = make(tmp_path / "whole", losses=limited, **options)
    whole.train()
    assert [r.message for r in caplog.records if "memory ran out" in r.message] == [
        "memory ran out with 4 evaluations in one forward; from now on it is 2 for such a batch"
    ]
    parts = make(tmp_path / "parts", losses=limited, **options)
    crash_after(parts, 3)
    caplog.clear()
    # As much memory as it wants.
    again = make(tmp_path / "parts", losses=own_losses, **options)
    again.train(resume_from_checkpoint=True)
    assert_same_run(again, whole)
    assert not [r for r in caplog.records if "memory ran out" in r.message]


class StopAtEvaluation(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_an_evaluation_that_ends_the_run_ends_it_when_made_up_for(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2}
    stopped(tmp_path, step=4, **options)
    again = make(tmp_path, **options)
    again.add_callback(StopAtEvaluation())
    assert again.train(resume_from_checkpoint=True).global_step == 4
    assert len(read_log(tmp_path / LOG_NAME)) == 4


def masking(examples):
    """Mask tokens at random, by each of the global generators."""
    ids = torch.stack([e["input_ids"] for e in examples])
    chance = torch.rand(ids.shape) + random.random() + float(np.random.rand())
    return {"input_ids": ids.masked_fill(chance > 2, 3), "labels": ids}


class Noisy(torch.utils.data.Dataset):
    """Changes a token at random whenever it is read."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        ids = self.rows[index]["input_ids"].clone()
        ids[random.randrange(len(ids))] = int(torch.randint(5, 60, ()))
        return {"input_ids": ids}


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from causal_data(self.rows)


class SizedStream(Stream):
    def __len__(self):
        return self.rows


@pytest.mark.usefixtures("ended_workers")
@pytest.mark.parametrize(
    "data, options",
    [
        (Noisy(causal_data(12)), {}),
        (Noisy(causal_data(12)), {"train_sampling_strategy": "sequential", "stop": 3}),
        (
            Noisy(causal_data(12)),
            {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "stop": 4},
        ),
        (Stream(24), {}),
        (SizedStream(12), {}),
    ],
    ids=["indexed", "at the end of an epoch", "workers", "stream", "passes of a stream"],
)
def test_random_draws_of_data_and_collators_resume(tmp_path, data, options):
    # An evaluation between draws too, and must not move what training draws.
    options = {"eval_strategy": "steps", "eval_steps": 2, **options}
    step = options.pop("stop", 5)

    def make_random(folder, **more):
        trainer = make(folder, **{**options, **more})
        trainer.train_dataset, trainer.data_collator = data, masking
        return trainer

    whole = make_random(tmp_path / "whole")
    whole.train()
    parts = make_random(tmp_path / "parts")
    crash_after(parts, step)
    again = make_random(tmp_path / "parts")
    again.train(resume_from_checkpoint=True)
    assert_same_run(again, whole)
    losses = [e["eval_loss"] for e in whole.state.log_history if "eval_loss" in e]
    assert len(losses) == 3


def test_a_stream_read_again_without_a_length_is_refused(tmp_path):
    trainer = make(tmp_path)
    trainer.train_dataset = Stream(12)
    crash_after(trainer, 5)
    again = make(tmp_path)
    again.train_dataset = Stream(12)
    with pytest.raises(ValueError, match="stream without a length, of which 1.33 passes"):
        again.train(resume_from_checkpoint=True)
