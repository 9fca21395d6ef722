import json

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from adazeta import TTAdapterConfig, ZOTrainer, add_tt_adapters
from adazeta.forward.losses import example_losses
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import CONFIG, arguments, causal_data, class_data, trainer
from tests.helpers.tiny_models import tiny_bert_cls, tiny_bert_mlm, tiny_llama


class Until(TrainerCallback):
    """Stop after some steps, as a user who interrupts a run."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps
        control.should_save = control.should_training_stop


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"probes": "example", "probes_per_forward": 2, "cache_trunk": "memory"},
        {"probes": "2", "queries": 2, "one_sided": True},
        {"method": "zo-momentum", "method_settings": {"momentum": 0.5}, "weight_decay": 0.1},
        {
            "method_settings": {"second_moment": "element"},
            "distribution": "rademacher",
            "share_trunk": False,
        },
    ],
)
def test_trains_without_any_gradient(tmp_path, options):
    zo = trainer(tmp_path, **options)
    frozen = {n: p.clone() for n, p in zo.model.named_parameters() if not p.requires_grad}
    before = bits(zo.model)
    zo.train()
    parameters = dict(zo.model.named_parameters())
    assert all(p.grad is None for p in parameters.values())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    moved = [not torch.equal(p, old) for p, old in zip(parameters.values(), before, strict=True)]
    assert any(moved)


def test_logs_what_the_estimates_were(tmp_path):
    zo = trainer(tmp_path, queries=3)
    zo.train()
    first, *_, last = [entry for entry in zo.state.log_history if "queries" in entry]
    assert first["queries"] == 3 and first["eps"] == pytest.approx(1e-2)
    assert last["evaluations"] - first["evaluations"] == 5 * 6
    assert last["projected_gradient_mean"] > 0 and last["projected_gradient_std"] > 0
    assert "grad_norm" not in last and last["learning_rate"] < first["learning_rate"]


def varied(rows=16):
    """Examples of different lengths, in the order of no length."""
    return [
        {"input_ids": d["input_ids"][: 3 + k * 5 % 4], "labels": d["labels"][: 3 + k * 5 % 4]}
        for k, d in enumerate(causal_data(rows))
    ]


def pad(examples):
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [example[key] for example in examples], batch_first=True, padding_value=filler
        )
        for name, key, filler in [("input_ids", "input_ids", 0), ("labels", "labels", -100)]
    } | {
        "attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(example["input_ids"]) for example in examples], batch_first=True
        )
    }


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_buckets_of_length_and_kept_trunks_resume_bit_for_bit(tmp_path, cache):
    def run(folder, steps=6, resume=None):
        seen = []

        def collate(examples):
            seen.append([example["input_ids"].tolist() for example in examples])
            return pad(examples)

        zo = ZOTrainer(
            add_tt_adapters(tiny_llama(), TTAdapterConfig(**CONFIG)),
            arguments(
                folder, train_sampling_strategy="group_by_length", cache_trunk=cache,
                cache_trunk_folder=str(folder / "states"), probes_per_forward="auto", queries=2,
            ),
            train_dataset=varied(), data_collator=collate,
        )  # fmt: skip
        zo.add_callback(Until(steps))
        zo.train(resume_from_checkpoint=resume)
        return zo, seen

    whole, order = run(tmp_path / "whole")
    repeated, again = run(tmp_path / "again")
    assert order == again
    # What "auto" measures may differ between runs; a resumed one takes it from the checkpoint.
    first, _ = run(tmp_path / "parts", steps=3)
    second, _ = run(tmp_path / "parts", resume=True)
    stack = first.zo_optimizer.estimator.stack.state_dict()
    assert second.zo_optimizer.estimator.stack.state_dict() == stack
    if whole.zo_optimizer.estimator.stack.state_dict() == stack:
        assert_same_bits(second.model, bits(whole.model))
    for other in (second, repeated):
        for a, b in zip(bits(other.model), bits(whole.model), strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("options", [{}, {"probes": "example", "gradient_accumulation_steps": 2}])
def test_resumed_run_is_the_same_run_bit_for_bit(tmp_path, options):
    whole = trainer(tmp_path / "whole", eps="auto", **options)
    whole.train()

    first = trainer(tmp_path / "parts", eps="auto", **options)
    first.add_callback(Until(3))
    first.train()
    second = trainer(tmp_path / "parts", eps="auto", **options)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6
    assert_same_bits(second.model, bits(whole.model))
    assert second.zo_optimizer.evaluations == whole.zo_optimizer.evaluations


def test_checkpoint_is_small_and_holds_an_adapter(tmp_path):
    zo = trainer(tmp_path, save_strategy="steps", save_steps=6)
    ignored = zo.model._keys_to_ignore_on_save
    zo.train()
    checkpoint = get_last_checkpoint(str(tmp_path))
    config = json.loads((tmp_path / "checkpoint-6" / "adapter_config.json").read_text())
    assert config["peft_type"] == "ADAZETA"
    size = (tmp_path / "checkpoint-6" / "model.safetensors").stat().st_size
    trainable = sum(p.numel() for p in zo.model.parameters() if p.requires_grad)
    assert checkpoint.endswith("checkpoint-6") and size < 4 * trainable + 4000
    assert zo.model._keys_to_ignore_on_save is ignored


def test_load_best_model_at_end(tmp_path):
    zo = ZOTrainer(
        add_tt_adapters(tiny_llama(), TTAdapterConfig(**CONFIG)),
        arguments(
            tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
            load_best_model_at_end=True, metric_for_best_model="loss",
        ),
        train_dataset=causal_data(),
        eval_dataset=causal_data(8),
    )  # fmt: skip
    zo.train()
    best = min(entry["eval_loss"] for entry in zo.state.log_history if "eval_loss" in entry)
    assert zo.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


def test_accumulated_micro_batches_average_one_direction(tmp_path):
    data = causal_data(8)
    one = trainer(tmp_path, data=data, max_steps=1, per_device_train_batch_size=8)
    many = trainer(
        tmp_path, data=data, max_steps=1, per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    one.train()
    many.train()
    assert len(many.zo_optimizer.last) == len(one.zo_optimizer.last) == 1
    found, expected = many.zo_optimizer.last, one.zo_optimizer.last
    torch.testing.assert_close(found.coefficients, expected.coefficients, atol=1e-3, rtol=1e-2)
    assert many.state.log_history[0]["loss"] == pytest.approx(
        one.state.log_history[0]["loss"], rel=1e-4
    )


def test_an_exception_inside_the_model_leaves_every_bit(tmp_path):
    zo = trainer(tmp_path, queries=2)
    before = bits(zo.model)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 20:  # in the middle of the first steps' evaluations
            raise RuntimeError("device lost")

    zo.model.model.layers[1].register_forward_hook(fail)
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(bits(zo.model))

    zo.add_callback(Watch())
    with pytest.raises(RuntimeError, match="device lost"):
        zo.train()
    assert_same_bits(zo.model, seen[-1] if seen else before)


def test_classification_with_a_head(tmp_path):
    model = add_tt_adapters(
        tiny_bert_cls(), TTAdapterConfig(**CONFIG, modules_to_save=["classifier"])
    )
    zo = ZOTrainer(
        model, arguments(tmp_path), train_dataset=class_data(), eval_dataset=class_data(),
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )  # fmt: skip
    zo.train()
    metrics = zo.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1 and metrics["eval_loss"] > 0


def test_a_model_without_adapters_trains_in_full(tmp_path):
    model = tiny_bert_cls()
    zo = ZOTrainer(model, arguments(tmp_path, eps="1e-3", max_steps=2), train_dataset=class_data())
    zo.train()
    zo.save_model(str(tmp_path / "model"))
    again = type(model).from_pretrained(tmp_path / "model")
    assert_same_bits(again, bits(model))


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert_mlm])
def test_losses_of_examples_average_to_the_models_loss(make):
    model = make()
    ids = torch.randint(5, 60, (4, 9))
    labels = ids.clone()
    labels[:, :3] = -100  # the same number of labels in every row, so that the means agree
    inputs = {"input_ids": ids, "labels": labels}
    with torch.no_grad():
        losses, logits = example_losses(model, inputs)
        torch.testing.assert_close(losses.mean(), model(**inputs).loss)
    assert losses.shape == (4,) and logits.shape[:2] == (4, 9)


def test_losses_of_classes_numbers_and_mistakes():
    model, ids = tiny_bert_cls(), torch.randint(5, 60, (4, 9))
    labels = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        losses, _ = example_losses(model, {"input_ids": ids, "labels": labels})
        expected = model(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(losses.mean(), expected)
        numbers, _ = example_losses(
            tiny_bert_cls(num_labels=1), {"input_ids": ids, "labels": torch.zeros(4)}
        )
        assert numbers.shape == (4,)
        with pytest.raises(ValueError, match="labels"):
            example_losses(model, {"input_ids": ids})
        with pytest.raises(ValueError, match="no loss is known"):
            example_losses(model, {"input_ids": ids, "labels": torch.zeros(4, 3)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fp16": True}, "gradient scaler"),
        ({"method": "lion"}, "lion"),
        ({"method": "zo-momentun"}, "did you mean 'zo-momentum'"),
        ({"method": "helene", "method_settings": {"floors": 0.1}}, "did you mean 'floor'"),
        ({"eps": "tiny"}, "eps"),
        ({"probes": "rows"}, "probes"),
        ({"probes_per_forward": "many"}, "probes_per_forward"),
        ({"cache_trunk": "tape"}, "cache_trunk"),
        ({"cache_trunk_limit": 0.0}, "cache_trunk_limit"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_plain_training_arguments_are_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="ZOTrainingArguments"):
        ZOTrainer(tiny_llama(), TrainingArguments(output_dir=str(tmp_path)))


def test_tensorboard_gets_the_figures(tmp_path):
    zo = trainer(tmp_path, report_to="tensorboard", max_steps=2)
    zo.train()
    assert list(tmp_path.rglob("events.out.tfevents.*"))
