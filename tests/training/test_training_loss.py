import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    OlmoeConfig,
    OlmoeForCausalLM,
)

from adazeta import TTAdapterConfig, ZOTrainer, add_tt_adapters
from adazeta.forward.losses import example_losses
from tests.helpers.runs import CONFIG, arguments, causal_data, class_data, trainer
from tests.helpers.tiny_models import SMALL, seeded, tiny_bert_cls, tiny_llama, tiny_llama_cls

HEAD = {**CONFIG, "modules_to_save": ["classifier"]}
SCORE = {**CONFIG, "modules_to_save": ["score"]}
WEIGHTS = torch.tensor([5.0, 1.0])


def adapted(model, config=HEAD):
    return add_tt_adapters(model, TTAdapterConfig(**config))


def run(folder, model, data, kind=ZOTrainer, options=None, **settings):
    zo = kind(
        model, arguments(folder, **settings), train_dataset=data, eval_dataset=data,
        **(options or {}),
    )  # fmt: skip
    zo.train()
    return zo


def losses_of(zo):
    return [entry["loss"] for entry in zo.state.log_history if "loss" in entry]


def weighted(outputs, labels, num_items_in_batch=None):
    return functional.cross_entropy(outputs.logits, labels, WEIGHTS)


class Overriding(ZOTrainer):
    """Class weights as users of the base class write them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = weighted(outputs, labels)
        return (loss, outputs) if return_outputs else loss


class Weighted(BertForSequenceClassification):
    """Class weights in the model."""

    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        if labels is not None:
            outputs["loss"] = weighted(outputs, labels)
        return outputs


@seeded
def build(kind, config):
    return kind(config)


@seeded
def weighted_model():
    return Weighted(tiny_bert_cls().config)


def with_function():
    model = tiny_llama_cls()
    model.loss_function = lambda labels, pooled_logits, config, **_: functional.cross_entropy(
        pooled_logits, labels, WEIGHTS
    )
    return model


def test_every_place_for_weights_of_classes_trains_on_them(tmp_path):
    data = class_data()
    runs = [
        run(tmp_path / "a", adapted(tiny_bert_cls()), data, Overriding),
        run(
            tmp_path / "b", adapted(tiny_bert_cls()), data, options={"compute_loss_func": weighted}
        ),
        run(tmp_path / "c", adapted(weighted_model()), data),
    ]
    plain = losses_of(run(tmp_path / "plain", adapted(tiny_bert_cls()), data))
    for zo in runs:
        assert losses_of(zo) == losses_of(runs[0]) != plain
        assert zo.evaluate()["eval_loss"] == runs[0].evaluate()["eval_loss"]
        assert zo.predict(data).predictions.shape == (16, 2)


def test_a_loss_function_that_was_set_on_the_model_is_trained(tmp_path):
    data = class_data()
    own = run(tmp_path / "a", adapted(with_function(), SCORE), data)
    asked = run(tmp_path / "b", adapted(tiny_llama_cls(), SCORE), data, Overriding)
    plain = run(tmp_path / "c", adapted(tiny_llama_cls(), SCORE), data)
    assert losses_of(own) == losses_of(asked) != losses_of(plain)
    assert own.evaluate()["eval_loss"] == asked.evaluate()["eval_loss"]


def test_a_batch_of_one_class_leaves_the_question_open(tmp_path):
    data = sorted(class_data(), key=lambda row: row["labels"])[2:]
    same = {"train_sampling_strategy": "sequential", "max_steps": 4}
    open_question = run(tmp_path / "a", adapted(weighted_model()), data, **same)
    asked = run(tmp_path / "b", adapted(tiny_bert_cls()), data, Overriding, **same)
    # The same losses, once as the mean of the examples' and once as that of the batch.
    assert losses_of(open_question) == pytest.approx(losses_of(asked), rel=1e-5)
    assert open_question._loss.batch is not None


def test_an_override_that_asks_the_base_class(tmp_path):
    class Doubling(ZOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    def first(folder, kind):
        zo = run(folder, adapted(tiny_llama(), CONFIG), causal_data(), kind, max_steps=1)
        return losses_of(zo)[0]

    # losses_only sums the same logits in another order.
    assert first(tmp_path / "b", Doubling) == pytest.approx(
        2 * first(tmp_path / "a", ZOTrainer), rel=1e-5
    )


def test_a_loss_scaled_by_the_items_of_the_step_is_summed_over_micro_batches(tmp_path):
    def summed(outputs, labels, num_items_in_batch=None):
        total = functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return total / num_items_in_batch

    data, options = class_data(8), {"compute_loss_func": summed}
    one = run(
        tmp_path / "one", adapted(tiny_bert_cls()), data, options=options, max_steps=1,
        per_device_train_batch_size=8,
    )  # fmt: skip
    many = run(
        tmp_path / "many", adapted(tiny_bert_cls()), data, options=options, max_steps=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    assert losses_of(many)[0] == pytest.approx(losses_of(one)[0], rel=1e-4)
    found, expected = many.zo_optimizer.last, one.zo_optimizer.last
    torch.testing.assert_close(found.coefficients, expected.coefficients, atol=1e-3, rtol=1e-2)


@seeded
def routed(**options):
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=112, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, num_experts=4, num_experts_per_tok=2,
            pad_token_id=0, eos_token_id=2, bos_token_id=1, **options,
        )
    )  # fmt: skip


def test_losses_of_routers_are_part_of_what_is_trained(tmp_path):
    data = causal_data()

    def first(folder, **options):
        model = adapted(routed(**options), {**CONFIG, "target_modules": ["o_proj"]})
        zo = run(folder, model, data, max_steps=1, train_sampling_strategy="sequential")
        batch = {name: torch.stack([row[name] for row in data[:4]]) for name in data[0]}
        with torch.no_grad():
            return losses_of(zo)[0], float(routed(**options)(**batch).loss)

    plain, _ = first(tmp_path / "a")
    with_routers, own = first(tmp_path / "b", output_router_logits=True, router_aux_loss_coef=0.5)
    # Training's loss is the mean over theta +- eps z, which the model's differs from by O(eps^2).
    assert with_routers == pytest.approx(own, rel=1e-2)
    assert with_routers > plain + 0.5


def test_a_loss_that_only_the_model_knows(tmp_path):
    data = [{**row, "next_sentence_label": 1} for row in causal_data()]
    model = build(BertForPreTraining, BertConfig(**SMALL))
    zo = run(tmp_path, adapted(model, CONFIG), data, max_steps=2)
    batch = {
        "input_ids": torch.stack([row["input_ids"] for row in data]),
        "labels": torch.stack([row["labels"] for row in data]),
        "next_sentence_label": torch.ones(16, dtype=torch.long),
    }
    with torch.no_grad():
        assert zo.evaluate()["eval_loss"] == pytest.approx(float(model(**batch).loss), rel=1e-5)


class OwnNames(nn.Module):
    """Takes its labels under a name of its own."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_bert_cls()

    def forward(self, input_ids, target):
        return {"loss": self.inner(input_ids=input_ids, labels=target).loss}


def test_labels_under_another_name(tmp_path):
    data = [{"input_ids": row["input_ids"], "target": row["labels"]} for row in class_data()]
    zo = run(tmp_path, OwnNames(), data, eps="1e-3", max_steps=2, label_names=["target"])
    assert losses_of(zo) and zo.evaluate()["eval_loss"] > 0


def test_spans_train_and_evaluate_as_in_the_base_class(tmp_path):
    data = [
        {"input_ids": row["input_ids"], "start_positions": 1, "end_positions": k % 5 + 1}
        for k, row in enumerate(causal_data())
    ]
    model = build(BertForQuestionAnswering, BertConfig(**SMALL))
    zo = run(tmp_path, adapted(model, CONFIG), data, max_steps=2, probes="example")
    found = zo.predict(data)
    start, end = found.predictions
    assert start.shape == end.shape == (16, 6) and found.metrics["test_loss"] > 0
    assert [part.shape for part in found.label_ids] == [(16,), (16,)]


@pytest.mark.parametrize(
    "settings",
    [
        {"probes": "example"},
        {"probes": "2"},
        {"probes_per_forward": "2"},
        {"padding_free": "true"},
        {"cache_trunk": "memory"},
    ],
)
def test_what_needs_losses_of_examples_is_refused_with_a_loss_of_the_batch(tmp_path, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"Overriding .* {name}=.* loss_fn"):
        run(tmp_path / "a", adapted(tiny_bert_cls()), class_data(), Overriding, **settings)
    with pytest.raises(ValueError, match=rf"compute_loss_func .* {name}=.* loss_fn"):
        options = {"compute_loss_func": weighted}
        run(tmp_path / "b", adapted(tiny_bert_cls()), class_data(), options=options, **settings)
    # Which loss a model has only shows on the first batch: still before any step.
    model = adapted(with_function(), SCORE)
    with pytest.raises(ValueError, match=rf"loss_function .* {name}=.* loss_fn"):
        run(tmp_path / "c", model, class_data(), **settings)


def test_stacks_chosen_by_measurement_are_single_with_a_loss_of_the_batch(tmp_path):
    data = [{**row, "input_ids": row["input_ids"][: 6 - 4 * (k > 3)]}
            for k, row in enumerate(class_data())]  # fmt: skip
    zo = run(
        tmp_path, adapted(tiny_bert_cls()), data, Overriding, probes_per_forward="auto", queries=2,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    assert {entry["probes_per_forward"] for entry in zo.state.log_history if "eps" in entry} == {1}


def test_label_smoothing_is_used_or_refused(tmp_path):
    seen = []

    def one(model, inputs, label_smoothing=0.0):
        seen.append(label_smoothing)
        return example_losses(model, inputs)

    smooth = {"label_smoothing_factor": 0.25}
    run(tmp_path / "a", adapted(tiny_bert_cls()), class_data(), options={"loss_fn": one}, **smooth)
    assert set(seen) == {0.25}
    with pytest.raises(ValueError, match="label_smoothing_factor=0.25 is not for a loss_fn"):
        ZOTrainer(tiny_bert_cls(), arguments(tmp_path, **smooth), loss_fn=lambda m, i: one(m, i))
    with pytest.raises(ValueError, match="label_smoothing_factor=0.25 is ignored by"):
        ZOTrainer(tiny_bert_cls(), arguments(tmp_path, **smooth), compute_loss_func=weighted)
    for problem in ("regression", "multi_label_classification"):
        model = tiny_bert_cls()
        model.config.problem_type = problem
        with pytest.raises(ValueError, match=f"label_smoothing_factor=0.25 .*{problem}"):
            ZOTrainer(model, arguments(tmp_path, **smooth))
    with pytest.raises(ValueError, match="routers.*label_smoothing_factor=0.25"):
        ZOTrainer(routed(output_router_logits=True), arguments(tmp_path, **smooth))
    with pytest.raises(ValueError, match="loss_fn and compute_loss_func"):
        ZOTrainer(tiny_bert_cls(), arguments(tmp_path), loss_fn=one, compute_loss_func=weighted)


def test_smoothed_losses_are_evaluated_too(tmp_path):
    plain, smooth = (
        trainer(tmp_path / str(share), label_smoothing_factor=share) for share in (0.0, 0.5)
    )
    data = causal_data(4)
    assert plain.evaluate(data)["eval_loss"] != smooth.evaluate(data)["eval_loss"]
