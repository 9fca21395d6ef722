"""Settings of the base class: each has its effect, or is refused before any work."""

import dataclasses

import pytest
import torch
import yaml
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.cli import main
from adazeta.forward.losses import example_losses
from adazeta.training.settings import NO_MATTER, REFUSED, SETTINGS, USED, table
from benchmarks.report.evidence import filled
from tests.helpers.paths import ROOT
from tests.helpers.runs import CONFIG, arguments, causal_data, class_data, trainer
from tests.helpers.tiny_models import tiny_bert_cls, tiny_llama

DOCUMENT = ROOT / "docs" / "training_arguments.md"
FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}


def losses_of(zo):
    zo.train()
    return [entry["loss"] for entry in zo.state.log_history if "loss" in entry]


def test_every_field_of_the_installed_version_is_in_the_table():
    assert set(FIELDS) <= set(SETTINGS)
    assert {setting.kind for setting in SETTINGS.values()} == {USED, REFUSED, NO_MATTER}
    of_other_versions = set(SETTINGS) - set(FIELDS)
    assert of_other_versions <= {
        "warmup_ratio", "logging_dir", "group_by_length", "activation_checkpointing",
        "activation_checkpointing_kwargs", "trackio_bucket_id", "trackio_static_space_id",
        "ddp_static_graph", "train_sampling_strategy", "dataloader_in_order",
        "dataloader_multiprocessing_context", "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
    }  # fmt: skip


def test_the_table_of_the_document_is_that_of_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert filled(text, "settings", table()) == text


def test_a_field_that_the_table_lacks_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(SETTINGS, "weight_decay")
    arguments(tmp_path)
    with pytest.raises(ValueError, match=r"weight_decay=0\.5 .* does not know"):
        arguments(tmp_path, weight_decay=0.5)


ON = {
    "optim": "adafactor",
    "optim_args": "a=1",
    "adam_epsilon": 1e-6,
    "optim_target_modules": ["attn"],
    "max_grad_norm": 0.5,
    "fp16": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "torch_compile": True,
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "auto_find_batch_size": True,
    "enable_jit_checkpoint": True,
    "push_to_hub": True,
    "ignore_data_skip": True,
    "parallelism_config": object(),
    "dataloader_in_order": False,
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 1},
    "deepspeed": {"zero_optimization": {"stage": 2}},
}
OTHERS = [
    ("adam_beta1", {"adam_beta1": 0.5, "method": "mezo"}),
    ("adam_beta2", {"adam_beta2": 0.5, "method": "helene"}),
    ("adam_beta2", {"adam_beta2": 0.5, "method_settings": {"betas": (0.9, 0.9)}}),
    ("accelerator_config", {"accelerator_config": {"split_batches": True}}),
    ("accelerator_config", {"accelerator_config": {"dispatch_batches": True}}),
    (
        "accelerator_config",
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
    ),
    ("accelerator_config", {"accelerator_config": "accelerate.json"}),
    ("train_sampling_strategy", {"train_sampling_strategy": "batch_rebalance"}),
    ("query_alpha", {"query_alpha": 2.0}),
    ("query_beta", {"query_beta": 2.0}),
    ("query_max", {"query_max": 3}),
    ("queries", {"query_schedule": True, "queries": 4}),
]


def test_every_refused_setting_has_a_value_that_is_refused_here():
    refused = {name for name, setting in SETTINGS.items() if setting.kind == REFUSED}
    assert refused == set(ON)


@pytest.mark.parametrize(
    "name, options",
    [(name, {name: value}) for name, value in ON.items() if name in FIELDS] + OTHERS,
)
def test_what_would_be_ignored_is_refused_by_name(tmp_path, name, options):
    with pytest.raises(ValueError, match=rf"^{name}[ =]"):
        arguments(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.0},
        {"gradient_checkpointing": None, "torch_compile": False, "fsdp": None},
        {"adam_beta1": 0.5, "adam_beta2": 0.5},
        {"accelerator_config": {"even_batches": False}},
        {"accelerator_config": AcceleratorConfig()},
        {"query_schedule": True, "query_alpha": 2.0},
        {"optim": FIELDS["optim"].default},
    ],
)
def test_what_is_left_off_or_used_is_accepted(tmp_path, options):
    arguments(tmp_path, **options)


def test_arguments_made_anew_from_themselves_are_accepted(tmp_path):
    first = arguments(tmp_path, query_schedule=True, weight_decay=0.1, label_smoothing_factor=0.1)
    names = [field.name for field in dataclasses.fields(first) if field.init]
    again = ZOTrainingArguments(**{name: getattr(first, name) for name in names})
    assert again.weight_decay == 0.1 and again.max_grad_norm == 0
    assert dataclasses.replace(first, seed=5).seed == 5


def test_fp16_of_a_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="gradient scaler"):
        arguments(tmp_path)


def test_a_launcher_that_compiles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    with pytest.raises(ValueError, match="dynamo_backend"):
        trainer(tmp_path)


def test_an_optimizer_class_for_gradients_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"optimizer_cls_and_kwargs .* args\.method"):
        ZOTrainer(tiny_llama(), arguments(tmp_path), optimizer_cls_and_kwargs=(torch.optim.SGD, {}))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(causal_data())


def test_an_order_that_a_stream_cannot_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_sampling_strategy='group_by_length'"):
        trainer(tmp_path, data=Stream(), train_sampling_strategy="group_by_length")


def test_columns_that_a_loss_may_need_are_not_dropped(tmp_path):
    def loss(model, inputs):
        return example_losses(model, {k: v for k, v in inputs.items() if k != "weight"})

    model, data = tiny_llama(), [{**row, "weight": 1.0} for row in causal_data()]
    with pytest.raises(ValueError, match="remove_unused_columns=True drops"):
        ZOTrainer(model, arguments(tmp_path, remove_unused_columns=True), loss_fn=loss)
    seen = []

    def weighted(model, inputs):
        seen.append(inputs["weight"])
        return loss(model, inputs)

    ZOTrainer(model, arguments(tmp_path, max_steps=1), loss_fn=weighted, train_dataset=data).train()
    assert seen
    # Without a loss of one's own the columns go, as in the base class.
    zo = trainer(tmp_path, data=data, remove_unused_columns=True, max_steps=1)
    assert losses_of(zo)


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True},
        {"learning_rate": 1e-1},
        {"weight_decay": 5.0},
        {"adam_beta1": 0.0},
        {"adam_beta2": 0.0},
        {"label_smoothing_factor": 0.3},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 9e-3}},
        {"warmup_steps": 3},
        {"gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2},
        {"train_sampling_strategy": "sequential"},
        {"data_seed": 9},
        {"seed": 9},
    ],
)
def test_settings_that_are_used_change_the_run(tmp_path, options):
    plain = losses_of(trainer(tmp_path / "plain"))
    assert losses_of(trainer(tmp_path / "other", **options)) != plain


@pytest.mark.usefixtures("ended_workers")
@pytest.mark.parametrize(
    "options",
    [
        {"ddp_find_unused_parameters": False},
        {"ddp_bucket_cap_mb": 5},
        {"average_tokens_across_devices": False},
        {"save_only_model": True},
        {"hub_strategy": "end"},
        {"use_cache": True},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"debug": "underflow_overflow"},
    ],
)
def test_settings_without_meaning_for_the_losses_leave_them(tmp_path, options):
    plain = losses_of(trainer(tmp_path / "plain"))
    assert losses_of(trainer(tmp_path / "other", **options)) == plain


def test_bf16_runs_under_autocast_in_training_and_evaluation(tmp_path):
    zo = trainer(tmp_path, bf16=True, max_steps=1)
    seen = []

    def look(*call):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))

    zo.model.model.layers[1].mlp.register_forward_hook(look)
    zo.train()
    training = len(seen)
    zo.evaluate(causal_data(4))
    assert training and len(seen) > training and set(seen) == {torch.bfloat16}


def test_memory_is_given_back_every_so_many_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("adazeta.training.trainer.clear_device_cache", lambda: calls.append(1))
    trainer(tmp_path / "never").train()
    assert not calls
    trainer(tmp_path / "often", torch_empty_cache_steps=2).train()
    assert len(calls) == 3


def test_tokens_are_counted(tmp_path):
    zo = trainer(tmp_path, include_num_input_tokens_seen="all")
    zo.train()
    assert zo.state.num_input_tokens_seen == 6 * 4 * 6


def test_callbacks_go_on_where_they_were(tmp_path):
    def make():
        patience = EarlyStoppingCallback(early_stopping_patience=50)
        zo = ZOTrainer(
            add_tt_adapters(tiny_llama(), TTAdapterConfig(**CONFIG)),
            arguments(
                tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=3,
                metric_for_best_model="never", greater_is_better=False,
                restore_callback_states_from_checkpoint=True,
            ),
            train_dataset=causal_data(), eval_dataset=causal_data(4), callbacks=[patience],
            compute_metrics=lambda prediction: {"never": 1.0},
        )  # fmt: skip
        return zo, patience

    zo, patience = make()
    zo.train()
    counted = patience.early_stopping_patience_counter
    zo, patience = make()
    zo.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    callback = next(
        c for c in zo.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)
    )
    assert callback.early_stopping_patience_counter == counted > 3


def evaluating(tmp_path, metrics, **options):
    model = add_tt_adapters(
        tiny_bert_cls(), TTAdapterConfig(**CONFIG, modules_to_save=["classifier"])
    )
    return ZOTrainer(
        model, arguments(tmp_path, per_device_eval_batch_size=4, **options),
        eval_dataset=class_data(8), compute_metrics=metrics,
    )  # fmt: skip


def test_metrics_get_what_they_ask_for(tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {}

    evaluating(tmp_path, metrics, include_for_metrics=["inputs", "loss"]).evaluate()
    (found,) = seen
    assert found.inputs.shape == (8, 6) and found.losses.shape == (8,)
    assert found.predictions.shape == (8, 2) and found.label_ids.shape == (8,)
    evaluating(tmp_path, metrics, eval_do_concat_batches=False).evaluate()
    assert [part.shape for part in seen[1].predictions] == [(4, 2), (4, 2)]
    evaluating(tmp_path, metrics, label_names=["labels", "input_ids"]).evaluate()
    assert [part.shape for part in seen[2].label_ids] == [(8,), (8, 6)]
    found = evaluating(tmp_path, metrics, prediction_loss_only=True).evaluate()
    assert len(seen) == 3 and found["eval_loss"] > 0


def test_metrics_can_be_computed_batch_by_batch(tmp_path):
    rows = []

    def metrics(prediction, compute_result):
        rows.append(len(prediction.label_ids))
        return {"rows": float(sum(rows))} if compute_result else {}

    found = evaluating(tmp_path, metrics, batch_eval_metrics=True).evaluate()
    assert rows == [4, 4] and found["eval_rows"] == 8


@pytest.mark.parametrize(
    "key, value",
    [
        ("neftune_noise_alpha", 5.0),
        ("optim", "adafactor"),
        ("torch_compile", True),
        ("gradient_checkpointing", True),
        ("max_grad_norm", 0.3),
        ("adam_epsilon", "1e-6"),
        ("deepspeed", {"zero_optimization": {"stage": 2}}),
        ("fsdp", "full_shard"),
        ("do_predict", True),
        ("remove_unused_columns", True),
    ],
)
def test_the_command_line_refuses_them_too(tmp_path, capsys, key, value):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    config = {
        "model": str(tmp_path / "none"), "train_data": str(data), "template": "{text} It was",
        "label_words": ["bad", "good"], "output_dir": str(tmp_path / "run"), "use_cpu": True,
        key: value,
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["train", str(path)]) == 2
    assert f"error: {key}=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
