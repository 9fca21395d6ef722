"""A run that goes on with something else than it began with says so."""

import json
import warnings

import pytest

from adazeta.runs.begun_with import begun_with, warn_of_changes
from adazeta.runs.run import prepare_from
from adazeta.support.batches import TEACHER
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.examples import Examples
from tests.helpers.commands import TEXTS, settings
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "base")
    write(tmp_path / "data.jsonl", TEXTS)
    return tmp_path


def write(file, texts):
    file.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in texts))


def run(folder, **changed):
    values = settings(folder) | {
        "train_data": str(folder / "data.jsonl"), "output_dir": str(folder / "run"),
        "use_cpu": True, "report_to": "none", "max_steps": 2, "report_baselines": False,
    }  # fmt: skip
    values.update(changed)
    made = prepare_from({name: value for name, value in values.items() if value is not None})
    made.train()
    return made


def more(folder, **changed):
    return run(folder, resume_from_checkpoint="true", max_steps=4, **changed)


FIRST = {"order": "first", "eps": None, "probes": None, "learning_rate": 0.05, "save_steps": 2}


@pytest.mark.parametrize("order", [{}, FIRST], ids=["zeroth", "first"])
def test_only_what_changed_is_told(folder, order):
    run(folder, **order)
    begun = json.loads((folder / "run" / "training_data.json").read_text())
    assert begun["examples"] == len(TEXTS) and begun["teacher"] is None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="this run began")
        assert more(folder, **order).trainer.state.global_step == 4
    write(folder / "data.jsonl", [*TEXTS[:-1], ("another film", TEXTS[-1][1])])
    with pytest.warns(UserWarning, match="else: the training examples changed"):
        run(folder, resume_from_checkpoint="true", max_steps=6, **order)
    write(folder / "data.jsonl", TEXTS[:-2])
    with pytest.warns(UserWarning, match="else: examples, the training examples changed"):
        run(folder, resume_from_checkpoint="true", max_steps=8, **order)


def test_other_label_words_are_another_task(folder):
    run(folder)
    with pytest.warns(UserWarning, match="else: task changed"):
        more(folder, label_words={0: "great", 1: "terrible"})


def test_a_folder_from_before_goes_on(folder):
    run(folder)
    (folder / "run" / "training_data.json").unlink()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="this run began")
        more(folder)


class OfTask:
    def to_dict(self):
        return {}


@pytest.mark.parametrize("shift, told", [(1e-5, False), (0.1, True)])
def test_another_teacher_is_told_from_rounding(tmp_path, shift, told):
    def present(shift):
        rows = [{"input_ids": [1], TEACHER: [0.5 + shift, 0.5 - shift]}]
        return begun_with(OfTask(), Examples(rows), TaskArguments())

    (tmp_path / "training_data.json").write_text(json.dumps(present(0.0)))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_changes(tmp_path, present(shift))
    assert [("teacher changed" in str(w.message)) for w in found] == [True] * told


def test_a_weight_that_changed_a_little_is_told(tmp_path):
    def present(weight):
        arguments = TaskArguments(reward="json", reward_weights=[1.0, weight])
        return begun_with(OfTask(), Examples([{"input_ids": [1]}]), arguments)

    (tmp_path / "training_data.json").write_text(json.dumps(present(0.5)))
    with pytest.warns(UserWarning, match="else: reward_weights changed"):
        warn_of_changes(tmp_path, present(0.5005))
