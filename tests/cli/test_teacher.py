"""``teacher``: runs that learn from a model instead of labels, and texts that a model writes."""

import gc
import json
import re
import weakref

import pytest
import torch
import yaml
from torch.nn import functional

from adazeta import TTAdapterConfig, ZOAdam, add_tt_adapters
from adazeta.cli import main
from adazeta.runs import run as runs
from adazeta.runs import teaching
from adazeta.runs.inference import load_task, score
from adazeta.runs.run import prepare_from
from adazeta.runs.teaching import divergence_from_teacher
from adazeta.runs.written import write_texts
from adazeta.support.batches import TEACHER
from adazeta.tasks.examples import Examples
from adazeta.tasks.prompt import PromptTask
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.commands import TEXTS, fails, settings
from tests.helpers.tiny_models import WORDS, tiny_llama, tiny_tokenizer

LINES = [f"{a} {b} film" for a in WORDS[20:26] for b in WORDS[40:44]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    for name, model in (("base", tiny_llama()), ("teacher", strong())):
        model.save_pretrained(folder / name)
        tiny_tokenizer(add_special_tokens=False).save_pretrained(folder / name)
    rows = [json.dumps({"text": text}) for text in LINES]
    (folder / "unlabelled.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS]
    (folder / "data.jsonl").write_text("\n".join(rows))
    return folder


def strong():
    """Another model than the student, with clear opinions."""
    model = tiny_llama(layers=3)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    return model


def taught(folder, out, **changed):
    values = settings(folder) | {
        "train_data": str(folder / "unlabelled.jsonl"), "teacher": str(folder / "teacher"),
        "output_dir": str(out), "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    values.update(changed)
    return {name: value for name, value in values.items() if value is not None}


FIRST = {"order": "first", "eps": None, "probes": None, "learning_rate": 0.05}
NEWTON = {
    "adapt": "last", "form": "informed", "method": "newton", "eps": None, "probes": None,
    "rank": None, "bottleneck": None, "learning_rate": None, "num_train_epochs": 2,
    "max_steps": None, "lr_scheduler_type": None, "layers": "last:1",
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"probes_per_forward": 2, "adapt": "suffix", "cache_trunk": "memory", "layers": "last:1"},
        {"probes": "batch", "label_words": {0: "terrible film", 1: "great"}},
        FIRST,
        NEWTON,
    ],
    ids=["examples", "stacked suffix", "phrases", "first order", "newton"],
)
def test_a_student_without_labels_comes_closer_to_its_teacher(folder, tmp_path, changed):
    run = prepare_from(taught(folder, tmp_path / "out", **{"max_steps": 12, **changed}))
    examples = run.examples["train"]
    before = divergence_from_teacher(examples, run.score("train", base=True)[1]).mean()
    # The loss that is trained is this divergence, and the teacher's own entropy.
    losses = run.score("train")[0].double()
    share = torch.tensor([example[TEACHER] for example in examples])
    entropy = torch.special.entr(share.double()).sum(-1)
    found = divergence_from_teacher(examples, run.score("train")[1])
    assert torch.allclose(losses - entropy, found, atol=1e-5)
    run.train()
    after = divergence_from_teacher(examples, run.score("train")[1]).mean()
    assert after < before
    assert "teacher" not in load_task(tmp_path / "out").to_dict()


def test_kept_probabilities_are_those_of_the_teacher_and_it_is_freed(folder, tmp_path, monkeypatch):
    alive = []
    load = teaching.load_model

    def watched(*args, **kwargs):
        model = load(*args, **kwargs)
        alive.append(weakref.ref(model))
        return model

    seen = []

    def student(*args, **kwargs):
        gc.collect()
        seen.append([model() for model in alive])
        return load(*args, **kwargs)

    monkeypatch.setattr(teaching, "load_model", watched)
    monkeypatch.setattr(runs, "load_model", student)
    run = prepare_from(taught(folder, tmp_path, adapt="suffix", layers="last:1"))
    assert seen == [[None]]  # before the student's weights are there
    task = PromptTask(run.task.tokenizer, "{text} it was", {0: "terrible", 1: "great"})
    rows = Examples([{**task.encode_prompt({"text": text}), "labels": 0} for text in LINES])
    live = score(strong(), task, rows)[1].softmax(-1)
    kept = torch.tensor([example[TEACHER] for example in run.examples["train"]])
    assert torch.equal(kept, live)
    assert run.examples["train"].labels.tolist() == live.argmax(-1).tolist()
    assert TEACHER not in run.examples["validation"][0]  # whose labels are the data's


def test_a_run_that_goes_on_is_taught_the_same(folder, tmp_path):
    def weights(name, **changed):
        run = prepare_from(taught(folder, tmp_path / name, hardest=0.5, **changed))
        run.train()
        return run.model

    whole = weights("whole")
    weights("part", max_steps=3)
    resumed = weights("part", resume_from_checkpoint="true")
    assert_same_bits(resumed, bits(whole))


def test_the_hardest_part_is_where_student_and_teacher_differ_most(folder, tmp_path):
    whole = prepare_from(taught(folder, tmp_path / "whole"))
    half = prepare_from(taught(folder, tmp_path / "half", hardest=0.5))
    found = divergence_from_teacher(whole.examples["train"], whole.score("train", base=True)[1])
    kept = [example["input_ids"] for example in half.examples["train"]]
    places = [k for k, e in enumerate(whole.examples["train"]) if e["input_ids"] in kept]
    assert len(places) == len(kept) == len(LINES) // 2
    assert [whole.examples["train"][k]["input_ids"] for k in places] == kept  # in their order
    assert found[places].min() >= found.median()
    assert (found >= 0).all() and found.max() > 0.01


def test_rows_that_are_kept_for_evaluation_are_judged_by_the_teacher(folder, tmp_path):
    changed = {"validation_data": None, "validation_share": 0.3}
    run = prepare_from(taught(folder, tmp_path, **changed))
    assert TEACHER in run.examples["validation"][0]
    metrics = run.train()
    outputs = run.score("validation")[1]
    agreement = (outputs.argmax(-1) == run.examples["validation"].labels).double().mean()
    assert metrics["validation_accuracy"] == pytest.approx(float(agreement))


def test_a_run_is_a_teacher_by_its_own_prompt_and_labels(folder, tmp_path, capsys):
    first = {
        **settings(folder), "output_dir": str(tmp_path / "first"), "use_cpu": True,
        "template": "text : {text} label :", "label_words": {1: "good", 0: "bad"},
    }  # fmt: skip
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first, sort_keys=False))
    assert main(["train", str(tmp_path / "first.yaml")]) == 0
    run = prepare_from(taught(folder, tmp_path / "second", teacher=str(tmp_path / "first")))
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "first"), *LINES[:3], "--json"]) == 0
    said = [row["probability"] for row in json.loads(capsys.readouterr().out)]
    kept = [max(run.examples["train"][k][TEACHER]) for k in range(3)]
    assert kept == pytest.approx(said, abs=1e-4)
    other = taught(folder, tmp_path / "third", teacher=str(tmp_path / "first"))
    other["label_words"] = {0: "terrible", "new": "great"}
    other.pop("validation_data")
    with pytest.raises(ValueError, match=r"tells the labels \['1', '0'\].*\['0', 'new'\]"):
        prepare_from(other)


def test_a_student_that_is_its_teacher_has_a_symmetric_minimum():
    """The slope falls as eps squared: even terms of the loss cancel between both sides."""
    task = PromptTask(tiny_tokenizer(), "{text} it was", {0: "terrible", 1: "great"})
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(rank=2, bottleneck=8, init="paper"))
    rows = [{"text": text} for text in LINES[:8]]
    batch = task.collate(list(task.encode_taught(rows, torch.zeros(8, 2))))
    with torch.no_grad():
        share = task.logits(model, batch).double().softmax(-1)

    def slopes(eps, targets):
        optimizer = ZOAdam(model, eps=eps, queries=4, seed=1, check_eps=False)
        found = optimizer.accumulate(
            # Sums in float64, as a hundredth of a small slope is to be told.
            lambda: functional.cross_entropy(task.logits(model, batch).double(), targets)
        )
        return found.projected.double().abs()

    large, small = slopes(0.02, share), slopes(0.01, share)
    assert ((large / small > 3) & (large / small < 5)).all(), large / small
    assert (slopes(0.01, share.argmax(-1)) > 50 * small).all()  # of labels there is a slope


@pytest.mark.parametrize(
    "changed, message",
    [
        (["--label_words", "null", "--completion", "{text}"], "whole vocabulary for each token"),
        (["--objective", "accuracy"], "counts right answers"),
        (["--hardest", "2"], "above 0 and at most 1"),
        (["--teacher", "nowhere/at/all.gguf"], "nowhere/at/all.gguf"),
        (["--template", "{words} it was"], "line 1: .*'words'"),
    ],
)
def test_what_cannot_be_taught_is_refused(folder, tmp_path, capsys, changed, message):
    values = taught(folder, tmp_path / "out", validation_data=None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert re.search(message, fails(capsys, "train", tmp_path / "config.yaml", *changed))


def test_a_model_writes_texts_that_its_seed_draws_again(folder, tmp_path, capsys):
    def written(name, *more, count=12):
        command = ["generate", str(folder / "base"), "--output", str(tmp_path / name)]
        command += ["--prompt", "a film :", "--prompt", "the story was", "--count", str(count)]
        assert main([*command, "--max_new_tokens", "5", *more]) == 0
        assert f"{count} texts: {tmp_path / name}" in capsys.readouterr().out
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    rows = written("one.jsonl")
    assert len({row["text"] for row in rows}) == 12 and all(row["text"].strip() for row in rows)
    assert {row["prompt"] for row in rows} == {"a film :", "the story was"}
    assert written("same.jsonl", "--batch_size", "3") == rows
    assert written("other.jsonl", "--seed", "1") != rows
    assert written("more.jsonl", count=20)[:12] == rows
    values = taught(folder, tmp_path / "out", train_data=str(tmp_path / "one.jsonl"))
    assert len(prepare_from(values).examples["train"]) == 12


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--output", "texts.csv"], "must be a .jsonl file"),
        (["--count", "0"], "count must be 1 or more"),
        (["--temperature", "0"], "temperature 0 writes one text after each prompt"),
        (["--chat"], "chat template"),
    ],
)
def test_texts_that_cannot_be_written_are_refused(folder, tmp_path, capsys, flags, message):
    command = ["generate", folder / "base", "--prompt", "a film", "--output", tmp_path / "a.jsonl"]
    assert message in fails(capsys, *command, *flags)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_model_that_keeps_writing_the_same_is_given_up(folder):
    with pytest.raises(ValueError, match="of 90 texts only . are different"):
        write_texts(
            str(folder / "base"), ["a film"], 9, temperature=0.01, max_new_tokens=1, batch_size=32
        )
