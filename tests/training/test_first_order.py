"""Training by gradients: the same loss, adapters and trunk, and runs that stop and go on."""

import pytest
import torch

from adazeta import AdaLomo, FOTrainer, FOTrainingArguments, TTAdapterConfig, add_tt_adapters
from adazeta.recording.state_files import SnapshotError
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import causal_data, crash_after
from tests.helpers.tiny_models import tiny_llama

CONFIG = {"rank": 2, "bottleneck": 8, "init": "paper", "layers": "last:1"}


def adapted(**config):
    return add_tt_adapters(tiny_llama(), TTAdapterConfig(**{**CONFIG, **config}))


def make(folder, model=None, **options):
    defaults = {
        "output_dir": str(folder), "max_steps": 8, "per_device_train_batch_size": 4,
        "save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    arguments = FOTrainingArguments(**{**defaults, **options})
    return FOTrainer(model or adapted(), arguments, train_dataset=causal_data(12))


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def gradients(folder, model, batch, **options):
    trainer = make(folder, model, **options)
    trainer.compute_loss(model, dict(batch)).backward()
    return {n: p.grad for n, p in trained(model).items()}


def collated(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def test_a_step_is_that_of_torch_bit_for_bit(tmp_path):
    ours, theirs = adapted(), adapted()
    assert_same_bits(ours, bits(theirs))
    trainer = make(
        tmp_path, ours, max_steps=1, learning_rate=0.02, max_grad_norm=0.0, weight_decay=0.1,
        per_device_train_batch_size=12, lr_scheduler_type="constant", save_strategy="no",
    )  # fmt: skip
    (batch,) = trainer.get_train_dataloader()
    trainer.train()
    decayed = set(trainer.get_decay_parameter_names(theirs))
    groups = [
        {"params": [p for n, p in trained(theirs).items() if (n in decayed) is decays],
         "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    trainer._loss.examples(theirs.eval(), batch)[0].mean().backward()
    optimizer.step()
    assert_same_bits(ours, bits(theirs))


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_shared_trunk_changes_no_gradient(tmp_path, cache):
    batch = collated(causal_data(6))
    plain = gradients(tmp_path / "a", adapted(), batch, share_trunk=False)
    shared = gradients(tmp_path / "b", adapted(), batch, cache_trunk=cache)
    assert any(g.abs().max() > 0 for g in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(
            shared[name], gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max()
        )


@pytest.mark.parametrize(
    "config", [CONFIG, {"form": "lora", "rank": 2, "layers": "last:1"}], ids=["bottleneck", "lora"]
)
def test_both_forms_of_adapters_learn(tmp_path, config):
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**config))
    trainer = make(
        tmp_path, model, max_steps=20, save_strategy="no", learning_rate=0.05,
        per_device_train_batch_size=12,
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.03


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "sgd", "rule_settings": {"momentum": 0.9}, "lr_scheduler_type": "cosine"},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "weight_decay": 0.1},
        {"train_sampling_strategy": "group_by_length", "save_steps": 3, "max_steps": 9},
        {"rule": "adalomo", "weight_decay": 0.1, "lr_scheduler_type": "cosine"},
        {
            "extrapolation": "past",
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2,
            "rule": "sgd",
        },
        {"extrapolation": "gaussian", "extrapolation_until": 0.8, "extrapolation_scale": 0.1},
    ],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, options):
    whole = make(tmp_path / "whole", **options)
    whole.train()
    parts = make(tmp_path / "parts", **options)
    crash_after(parts, 5)
    again = make(tmp_path / "parts", **options)
    again.train(resume_from_checkpoint=True)
    assert_same_bits(again.model, bits(whole.model))
    there, here = (
        [(e["step"], e["loss"]) for e in t.state.log_history if "loss" in e] for t in (whole, again)
    )
    assert here == there
    for old, new in zip(
        whole.optimizer.state_dict()["state"].values(),
        again.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(
            torch.equal(torch.as_tensor(old[k]), torch.as_tensor(new[k]))
            for k in old
            if old[k] is not None
        )


def test_a_run_with_extrapolation_is_the_plain_loop(tmp_path):
    """Two micro-batches a step, for the first half of the steps; nothing drops out."""
    ours, theirs = adapted(), adapted()
    options = {
        "rule": "sgd", "learning_rate": 0.2, "lr_scheduler_type": "constant", "max_steps": 4,
        "gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0, "save_strategy": "no",
    }  # fmt: skip
    trainer = make(
        tmp_path, ours, extrapolation="local", extrapolation_scale=0.5, extrapolation_until=0.5,
        **options,
    )  # fmt: skip
    trainer.train()
    plain, rows = make(tmp_path / "plain", theirs, **options), causal_data(12)
    found = list(trained(theirs).values())

    def gradient(first):
        loss = plain.compute_loss(theirs, collated(rows[first : first + 4])) / 2
        return torch.autograd.grad(loss, found)

    # An epoch has three batches: its second step has one.
    for step, batches in enumerate([(0, 4), (8,), (0, 4), (8,)]):
        total = [torch.zeros_like(p) for p in found]
        for first in batches:
            before = [p.detach().clone() for p in found]
            share = 2 / len(batches)
            if step < 2:
                for p, g in zip(found, gradient(first), strict=True):
                    p.data.add_(g * share, alpha=-0.5 * len(batches))
            for t, g in zip(total, gradient(first), strict=True):
                t.add_(g * share)
            for p, value in zip(found, before, strict=True):
                p.data.copy_(value)
        for p, g in zip(found, total, strict=True):
            p.data.add_(g, alpha=-0.2)
    for a, b in zip(trained(ours).values(), found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_no_way_ahead_is_the_plain_run_bit_for_bit(tmp_path):
    plain, other = make(tmp_path / "a"), make(
        tmp_path / "b", extrapolation="local", extrapolation_scale=0.0
    )  # fmt: skip
    plain.train()
    other.train()
    assert_same_bits(other.model, bits(plain.model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adalomo_trains_a_whole_model_within_the_backward_pass(tmp_path, dtype):
    """By the trainer, stopped and resumed: what a plain loop makes of the same batches."""
    options = {
        "rule": "adalomo", "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
    stopped, whole = (tiny_llama(layers=1).to(dtype).requires_grad_() for _ in range(2))
    crash_after(make(tmp_path, stopped, **options), 5)
    assert all(p.grad is None for p in stopped.parameters())
    again = make(tmp_path, tiny_llama(layers=1).to(dtype).requires_grad_(), **options)
    again.train(resume_from_checkpoint=True)
    optimizer = AdaLomo(whole.parameters(), lr=1e-2, seed=3)
    trainer = make(tmp_path / "loop", whole, **options)
    rows = causal_data(12)
    for step in range(8):
        first = 4 * (step % 3)
        trainer.compute_loss(whole, collated(rows[first : first + 4])).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_bits(again.model, bits(whole))
    held = again.optimizer.state_dict()["state"].values()
    numbers = sum(t.numel() for s in held for t in s.values() if torch.is_tensor(t))
    assert numbers < 0.1 * sum(p.numel() for p in whole.parameters())
    # After training the hooks are off: a backward pass changes nothing.
    again.compute_loss(again.model, collated(causal_data(2))).backward()
    assert_same_bits(again.model, bits(whole))


def test_a_run_that_is_done_stays_as_it_is(tmp_path):
    first = make(tmp_path)
    first.train()
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    assert_same_bits(again.model, bits(first.model))


@pytest.mark.parametrize("whole", [False, True])
def test_nothing_is_pickled(tmp_path, whole):
    trainer = make(tmp_path, tiny_llama(layers=1).train() if whole else None)
    trainer.train()
    trainer.save_model()
    found = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert found <= {".json", ".jsonl", ".safetensors", ".md", ""}


def test_a_damaged_checkpoint_and_other_settings_are_refused(tmp_path, caplog):
    make(tmp_path).train()
    with pytest.raises(ValueError, match="begun with learning_rate=0.01, and this run has 0.5"):
        make(tmp_path, learning_rate=0.5).train(resume_from_checkpoint=True)
    path = tmp_path / "checkpoint-8/first_order.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(SnapshotError, match="first_order.safetensors is damaged"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert "an earlier checkpoint serves instead" in caplog.text
    assert again.state.global_step == 8


@pytest.mark.parametrize(
    "config, message",
    [
        ({"scale": 4.0}, "scale=1.0, and this run has 4.0"),
        ({"activation": "linear"}, "activation='relu', and this run has 'linear'"),
        ({"drop": 0.5}, "drop=0.0, and this run has 0.5"),
    ],
)
def test_a_run_does_not_go_on_with_other_adapters(tmp_path, config, message):
    make(tmp_path).train()
    with pytest.raises(ValueError, match=f"begun with {message}"):
        make(tmp_path, adapted(**config), max_steps=9).train(resume_from_checkpoint=True)


def test_a_run_does_not_go_on_with_another_base_or_loss(tmp_path):
    make(tmp_path).train()
    other = adapted()
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(ValueError, match="begun with fingerprint of the base model="):
        make(tmp_path, other, max_steps=9).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="begun with label_smoothing_factor=0.0"):
        make(tmp_path, label_smoothing_factor=0.1).train(resume_from_checkpoint=True)


def test_a_first_order_run_that_diverges_ends_with_an_error(tmp_path):
    options = {"rule": "sgd", "learning_rate": 1e18, "lr_scheduler_type": "constant"}
    trainer = make(tmp_path, adapted(activation="linear"), max_grad_norm=0.0, **options)
    with pytest.raises(FloatingPointError, match=r"the loss of step \d is (nan|inf).*lower learn"):
        trainer.train()
    trainer = make(tmp_path / "last", adapted(), max_steps=1, **options)
    with torch.no_grad():  # the last step leads to what no loss has seen
        next(iter(trained(trainer.model).values())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer._check_finite()


def test_the_account_names_an_optimizer_that_was_given(tmp_path):
    model = adapted()
    arguments = FOTrainingArguments(
        output_dir=str(tmp_path), rule="sgd", max_steps=2, report_to="none", use_cpu=True
    )
    own = torch.optim.Adam(trained(model).values(), lr=1e-3), None
    trainer = FOTrainer(model, arguments, train_dataset=causal_data(12), optimizers=own)
    trainer.train()
    assert trainer.account() == "2 steps of Adam, forward and backward"


def test_checkpoints_of_an_earlier_run_are_not_those_of_this_one(tmp_path):
    make(tmp_path).train()
    new = make(tmp_path)
    crash_after(new, 1)
    with pytest.raises(FileNotFoundError, match="no whole checkpoint of the run"):
        make(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rule": "adam"}, "did you mean 'adamw'"),
        ({"rule": "sgd", "rule_settings": {"betas": 1}}, "has no setting 'betas'"),
        (
            {"rule": "sgd", "adam_beta1": 0.8},
            "adam_beta1=0.8 is not supported: by rules 'adamw' and 'lamb'",
        ),
        ({"learning_rate": "auto"}, "measured for order='zeroth' alone"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing=True is not supported"),
        ({"optim": "sgd"}, "'rule'"),
        ({"extrapolation": "locl"}, "did you mean 'local'"),
        ({"extrapolation_scale": 0.1}, "means nothing with extrapolation='none'"),
        ({"extrapolation_until": 0.5}, "means nothing with extrapolation='none'"),
        ({"extrapolation": "local", "extrapolation_scale": -1.0}, "uphill is extrapolation='asc"),
        ({"extrapolation": "local", "extrapolation_until": 0.0}, "extrapolation_until must be in"),
        ({"extrapolation": "local", "rule": "adalomo"}, "drops each within the backward pass"),
        (
            {"rule": "adalomo", "gradient_accumulation_steps": 2},
            "accumulation_steps=2 is not.*at 1",
        ),
        ({"rule": "adalomo", "max_grad_norm": 0.5}, "max_grad_norm=0.5 is not.*set it to 0"),
        ({"rule": "adalomo", "rule_settings": {"clip": 0}}, "clip must be above 0"),
        ({"rule": "adalomo", "rule_settings": {"clip": "a"}}, "rule_settings: clip must be int or"),
        ({"rule": "adalomo", "rule_settings": {"beta": "b"}}, "rule_settings: beta must be float"),
        ({"rule": "adamw", "rule_settings": {"amsgrad": "maybe"}}, "amsgrad must be bool"),
        ({"rule": "sgd", "rule_settings": {"momentum": True}}, "momentum must be int or float"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


@pytest.mark.parametrize(
    "kind, scale",
    [("none", None), ("local", 0.025), ("gaussian", 0.025), ("past", 0.1), ("ascent", 0.05)],
)
def test_gradients_are_taken_as_far_ahead_as_a_micro_batch_would_step(tmp_path, kind, scale):
    arguments = make(
        tmp_path, extrapolation=kind, learning_rate=0.1, gradient_accumulation_steps=4
    ).args
    assert arguments.extrapolation_scale == scale


def test_words_of_yaml_are_read_as_what_a_setting_is(tmp_path):
    given = {"momentum": "0.9", "nesterov": "no"}
    arguments = make(tmp_path, rule="sgd", rule_settings=given).args
    assert arguments.rule_settings == {"momentum": 0.9, "nesterov": False}
    assert make(tmp_path, rule_settings={"amsgrad": "on"}).args.rule_settings["amsgrad"] is True


def test_rewards_and_frozen_models_are_refused(tmp_path):
    arguments = FOTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="a score has no gradient"):
        FOTrainer(adapted(), arguments, reward_funcs=len)
    with pytest.raises(ValueError, match="nothing to train"):
        FOTrainer(tiny_llama().requires_grad_(False), arguments)
