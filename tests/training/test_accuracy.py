"""Training on the share of right answers itself."""

import json
import math

import pytest
import torch
import yaml

from adazeta import TTAdapterConfig, ZOTrainer, add_tt_adapters
from adazeta.cli import main
from adazeta.forward.losses import example_losses
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import replay
from adazeta.training.right_answers import RightAnswers, wrong_answers
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.commands import fails
from tests.helpers.runs import arguments, causal_data, class_data, crash_after
from tests.helpers.tiny_models import tiny_llama, tiny_llama_cls, tiny_tokenizer

CONFIG = {"rank": 2, "bottleneck": 8, "init": "paper"}


def model():
    return add_tt_adapters(tiny_llama_cls(), TTAdapterConfig(**CONFIG))


def trainer(folder, rows=32, **options):
    own = {name: options.pop(name) for name in ("optimizers", "compute_loss_func", "reward_funcs")
           if name in options}  # fmt: skip
    defaults = {"eps": "auto", "probes": "example", "per_device_train_batch_size": 8}
    return ZOTrainer(
        model(),
        arguments(folder, **{**defaults, **options}),
        train_dataset=class_data(rows),
        eval_dataset=class_data(rows),
        objective="accuracy",
        **own,
    )


def test_a_wrong_answer_counts_one_and_an_unlabelled_example_nothing():
    lowest, nan = -math.inf, math.nan
    logits = torch.tensor([[1.0, 2.0, 0.0], [3, 1, lowest], [2, 2, 1], [0, 1, 2], [nan, 1, 2]])
    found = wrong_answers(logits, torch.tensor([1, 1, 0, -100, 2]))
    assert found.dtype == torch.float64
    assert found[:3].tolist() == [0, 1, 0] and found[3:].isnan().all()  # the first of equal ones
    for labels in (torch.zeros(5, 2).long(), torch.zeros(5), None):
        with pytest.raises(ValueError, match="one label an example"):
            wrong_answers(logits, labels)


def test_labels_that_change_count_by_what_chance_would_change():
    found = {"logits": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    evaluations = RightAnswers().of(lambda batch: batch["logits"])
    differs = evaluations.differs(found)
    both = torch.cat([found["logits"], found["logits"].flip(-1)])
    assert differs({"logits": both}).tolist() == [0, 0, 2, 2]  # of two classes chance changes half


def test_the_accuracy_rises(tmp_path):
    run = trainer(tmp_path, learning_rate=0.01, queries=2, max_steps=40)
    before = run.evaluate()["eval_loss"]
    run.train()
    after = run.evaluate()
    logits = run.predict(run.eval_dataset).predictions
    right = (logits.argmax(-1) == [row["labels"] for row in run.eval_dataset]).mean()
    assert after["eval_loss"] == pytest.approx(1 - right) and after["eval_loss"] < before - 0.2
    logged = [entry for entry in run.state.log_history if "accuracy" in entry]
    assert len(logged) == 40 and "reward" not in logged[0]
    assert logged[0]["loss"] == pytest.approx(1 - logged[0]["accuracy"], abs=1e-4)
    assert any(entry["informative_pairs"] > 0 for entry in logged)


@pytest.mark.parametrize(
    "options", [{}, {"probes": "batch", "queries": 2, "shaping": "rank", "probes_per_forward": 2}]
)
def test_it_replays_and_resumes_to_the_same_bits(tmp_path, options):
    options |= {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    stopped = trainer(tmp_path / "stopped", **options)
    crash_after(stopped, 3)
    resumed = trainer(tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_bits(resumed.model, bits(whole.model))
    assert all(record.seeds for record in read_log(tmp_path / "whole" / LOG_NAME))
    again = model()
    replay(tmp_path / "whole" / LOG_NAME, again)
    assert_same_bits(again, bits(whole.model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "ZONewton makes a model of the cross entropy"),
        ({"method": "zo-conservative"}, "ConservativeSGD needs a loss that changes"),
        ({"label_smoothing_factor": 0.1}, "an answer is right or not"),
        ({"compute_loss_func": example_losses}, "excludes compute_loss_func"),
        ({"reward_funcs": len}, "excludes reward_funcs"),
    ],
)
def test_what_excludes_it_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


def test_it_is_for_classifications(tmp_path):
    options = {"train_dataset": causal_data(), "objective": "accuracy"}
    with pytest.raises(ValueError, match="one label an example"):
        ZOTrainer(tiny_llama(), arguments(tmp_path), **options).train()
    with pytest.raises(ValueError, match="got 'f1'"):
        ZOTrainer(tiny_llama(), arguments(tmp_path), **{**options, "objective": "f1"})


@pytest.fixture
def folder(tmp_path):
    """A folder with a model, labelled texts and a configuration."""
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "base")
    words = [("a great film", 1), ("a bad film", 0), ("it was dull", 0), ("the best cat", 1)] * 4
    rows = [{"text": text, "label": label, "options": ["bad", "good"]} for text, label in words]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "model": str(tmp_path / "base"), "train_data": str(tmp_path / "texts.jsonl"),
        "test_data": str(tmp_path / "texts.jsonl"), "template": "{text} It was",
        "objective": "accuracy", "rank": 2, "bottleneck": 8, "per_device_train_batch_size": 4,
        "max_steps": 2, "disable_tqdm": True, "output_dir": str(tmp_path / "out"),
        "report_to": "none", "logging_steps": 1,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.mark.parametrize(
    "kind",
    [
        ["--label_words", "[bad, good]", "--adapt", "last", "--cache_trunk", "memory"],
        ["--label_words", "[very bad, very good]"],
        ["--classes", "[0, 1]", "--template", "{text}"],
        ["--choices", "options"],
    ],
    ids=["words", "phrases", "head", "choices"],
)
def test_every_kind_of_classification_takes_it(folder, kind):
    assert main(["train", str(folder / "config.yaml"), *kind]) == 0
    found = json.loads((folder / "out" / "all_results.json").read_text())
    assert found["test_loss"] == pytest.approx(1 - found["test_accuracy"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--completion", "{label}"], "no meaning for a task of completion"),
        (["--label_words", "[bad, good]", "--objective", "likelihood"], "of label_words"),
        (["--label_words", "[bad, good]", "--objective", "f1"], "objective must be one of"),
        (["--label_words", "[bad, good]", "--method", "newton"], "choose another method"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, flags, message):
    assert message in fails(capsys, "train", folder / "config.yaml", *flags)
