"""Runs that leave adapters out: which ones, in evaluations, after a stop, and in a replay."""

import pytest
import torch

from adazeta import FOTrainer, FOTrainingArguments, replay
from adazeta.adapters.attached import attached_adapters
from adazeta.forward.losses import example_losses
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.identity import fingerprint_of_state
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import adapted, causal_data, crash_after, make

CONFIG = {"drop": 0.5}


class Spy:
    """A loss function that writes down which adapters are there."""

    def __init__(self):
        self.model, self.seen = adapted(**CONFIG), []

    def __call__(self, model, inputs):
        self.seen.append(tuple(a.enabled for _, a in attached_adapters(self.model)))
        return example_losses(model, inputs)


def zeroth(folder, **options):
    spy = Spy()
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, **options}
    options = {"share_trunk": False, "diagnostics_steps": 1, "probes": "batch", **options}
    return make(folder, spy.model, spy, **options), spy


def first(folder, **options):
    spy = Spy()
    defaults = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3,
        "share_trunk": False,
    }  # fmt: skip
    arguments = FOTrainingArguments(**{**defaults, **options})
    data = {"train_dataset": causal_data(12), "eval_dataset": causal_data(4)}
    return FOTrainer(spy.model, arguments, loss_fn=spy, **data), spy


@pytest.fixture(params=[zeroth, first])
def start(request):
    return request.param


def test_each_micro_batch_has_a_mask_and_evaluations_have_none(tmp_path, start):
    trainer, spy = start(tmp_path)
    trainer.train()
    of_each = 2 if start is zeroth else 1
    seen = spy.seen[-12 * of_each :]
    # What is measured before the first step is of the model as it is evaluated.
    assert set(spy.seen[: -12 * of_each]) <= {(True, True)}
    pairs = [seen[at : at + of_each] for at in range(0, len(seen), of_each)]
    assert all(len(set(pair)) == 1 for pair in pairs)
    # Two adapters have four masks; one leaves both out, which is no error.
    assert len(set(seen)) == 4
    spy.seen.clear()
    trainer.evaluate()
    trainer.predict(causal_data(4))
    assert set(spy.seen) == {(True, True)}


def test_a_run_that_was_stopped_goes_on_with_the_same_masks(tmp_path, start):
    whole, all_masks = start(tmp_path / "whole")
    whole.train()
    parts, _ = start(tmp_path / "parts")
    crash_after(parts, 5)
    again, masks = start(tmp_path / "parts")
    again.train(resume_from_checkpoint=True)
    assert_same_bits(again.model, bits(whole.model))
    assert masks.seen and masks.seen == all_masks.seen[-len(masks.seen) :]


def test_a_replay_needs_no_masks(tmp_path):
    trainer, _ = zeroth(tmp_path)
    trainer.train()
    model = adapted(**CONFIG)
    optimizer = replay(tmp_path / LOG_NAME, model)
    assert fingerprint_of_state(optimizer) == fingerprint_of_state(trainer.zo_optimizer)
    assert_same_bits(model, bits(trainer.model))


def test_the_log_says_so_and_a_change_is_told(tmp_path, caplog):
    trainer, _ = zeroth(tmp_path)
    crash_after(trainer, 3)
    again = make(tmp_path, adapted(), gradient_accumulation_steps=2, probes="batch")
    again.train(resume_from_checkpoint=True)
    assert "estimator.drop was [0.5] and is None; the run goes on with the new value" in caplog.text


def test_first_order_goes_on_with_the_drop_it_began_with(tmp_path):
    trainer, _ = first(tmp_path)
    crash_after(trainer, 3)
    arguments = trainer.args
    other = FOTrainer(adapted(), arguments, train_dataset=causal_data(12))
    with pytest.raises(ValueError, match="begun with drop=0.5, and this run has 0.0"):
        other.train(resume_from_checkpoint=True)


def test_where_all_are_left_out_gradients_are_zero(tmp_path):
    model = adapted(drop=1 - 2**-53)
    arguments = FOTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    before = bits(model)
    FOTrainer(model, arguments, train_dataset=causal_data(12)).train()
    assert_same_bits(model, before)
    assert torch.isfinite(torch.cat([p.flatten() for p in model.parameters()])).all()
