"""Prompts to be completed and scored: encoding, stopping, and runs from settings to completions."""

import json

import pytest
import torch
import yaml

from adazeta.cli import main
from adazeta.recording.folder import COMPLETIONS_NAME
from adazeta.rewards.gym import make_data
from adazeta.tasks.registry import task_from_dict
from adazeta.tasks.reward import RewardTask
from tests.helpers import gym
from tests.helpers.commands import fails
from tests.helpers.paths import ROOT
from tests.helpers.rewards import PROMPTS, lively_llama, task
from tests.helpers.tiny_models import PAD, tiny_llama, tiny_tokenizer

REWARD = '''
def early(prompts, completions, **columns):
    """Letters before m."""
    return [sum(c < "m" for c in text) / max(len(text), 1) for text in completions]
'''


@pytest.fixture
def folder(tmp_path):
    """A folder with a model, prompts, a reward and a configuration."""
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "base")
    rows = [json.dumps({"prompt": text}) for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    (tmp_path / "scores.py").write_text(REWARD)
    values = {
        "model": str(tmp_path / "base"), "train_data": str(tmp_path / "prompts.jsonl"),
        "validation_data": str(tmp_path / "prompts.jsonl"), "reward": f"{tmp_path}/scores.py:early",
        "max_new_tokens": 5, "rank": 2, "bottleneck": 8, "init": "paper", "probes": "example",
        "per_device_train_batch_size": 3, "max_steps": 2, "disable_tqdm": True,
        "learning_rate": 0.1, "output_dir": str(tmp_path / "out"), "report_to": "none",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def test_a_run_with_a_reward_trains_evaluates_and_predicts(folder, capsys):
    assert main(["train", str(folder / "config.yaml")]) == 0
    told = capsys.readouterr().out
    assert "validation: reward 0." in told and "predict" in told
    results = json.loads((folder / "out" / "all_results.json").read_text())
    assert {"validation_reward", "validation_kl", "validation_base_perplexity"} < set(results)
    assert main(["predict", str(folder / "out"), "--json", "the film was", "it is"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = rows[0] if isinstance(rows[0], list) else rows
    assert [row["text"] for row in rows] == ["the film was", "it is"]
    assert all(row["completion"] for row in rows)
    message = fails(capsys, "eval", folder / "out", "--data", folder / "prompts.jsonl")
    assert "rewards" in message


def test_guarded_texts_are_measured_and_not_trained(folder):
    rows = [json.dumps({"text": text}) for text in ("the dog and the cat", "we never were there")]
    (folder / "guard.jsonl").write_text("\n".join(rows))
    flags = ["--guard_data", str(folder / "guard.jsonl"), "--init", "zero"]
    assert main(["train", str(folder / "config.yaml"), *flags, "--learning_rate", "0"]) == 0
    found = json.loads((folder / "out" / "all_results.json").read_text())
    assert found["validation_guard_loss"] == pytest.approx(found["validation_guard_loss_base"])
    again = [*flags, "--output_dir", str(folder / "again")]
    assert main(["train", str(folder / "config.yaml"), *again]) == 0
    moved = json.loads((folder / "again" / "all_results.json").read_text())
    assert moved["validation_guard_loss"] != moved["validation_guard_loss_base"]
    assert moved["validation_guard_loss_base"] == found["validation_guard_loss_base"]


@pytest.mark.parametrize("adapt", ["all", "answer"])
def test_informed_adapters_learn_their_space_from_scored_texts(folder, adapt):
    flags = ["--form", "informed", "--components", "4", "--adapt", adapt, "--layers", "[0]"]
    assert main(["train", str(folder / "config.yaml"), *flags]) == 0
    again = [*flags, "--output_dir", str(folder / "again")]
    assert main(["train", str(folder / "config.yaml"), *again]) == 0
    one, two = (folder / name / "probes.log" for name in ("out", "again"))
    assert one.read_bytes() == two.read_bytes()


@pytest.fixture
def sums(folder, monkeypatch):
    """Settings of a run whose reward makes its data."""
    gym.install(monkeypatch)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["train_data"], values["validation_data"]
    values |= {"reward": "reasoning_gym:sums"}
    values |= {"reward_data": {"train": 12, "validation": 4, "test": 6, "largest": 9}}
    (folder / "sums.yaml").write_text(yaml.safe_dump(values))
    return folder / "sums.yaml"


def test_a_reward_makes_the_data_of_a_run_without_a_file(sums):
    assert main(["train", str(sums), "--eval_strategy", "steps", "--eval_steps", "1"]) == 0
    found = json.loads((sums.parent / "out" / "all_results.json").read_text())
    assert 0 <= found["test_reward"] <= 1 and "validation_reward" in found
    lines = (sums.parent / "out" / COMPLETIONS_NAME).read_text().splitlines()
    shown = {json.loads(line)["prompt"] for line in lines}
    made = make_data("sums", {"train": 12, "validation": 4, "test": 6, "largest": 9})
    assert shown == {one["prompt"] for name in ("validation", "test") for one in made[name]}


def test_the_example_of_countdown_runs(sums):
    base = sums.parent / "base"
    tokenizer = tiny_tokenizer(add_special_tokens=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}answer :"
    tokenizer.save_pretrained(base)
    example = yaml.safe_load((ROOT / "examples" / "countdown.yaml").read_text())
    data = {**example["reward_data"], "train": 4, "validation": 2, "test": 2}
    example |= {
        "model": str(base), "reward_data": data, "max_new_tokens": 4, "max_length": 64,
        "per_device_train_batch_size": 2, "max_steps": 1, "eval_steps": 1, "save_steps": 1,
        "disable_tqdm": True, "report_to": "none", "output_dir": str(sums.parent / "countdown"),
    }  # fmt: skip
    (sums.parent / "countdown.yaml").write_text(yaml.safe_dump(example))
    assert main(["train", str(sums.parent / "countdown.yaml")]) == 0
    found = json.loads((sums.parent / "countdown" / "all_results.json").read_text())
    assert "test_reward" in found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--test_data", "prompts.jsonl"], "may hold questions that are trained on"),
        (["--validation_share", "0.1"], "validation_share=0.1 without train_data"),
        (["--train_data", "prompts.jsonl"], "leave reward_data out"),
        (["--reward", "vader"], "here is reward='vader'"),
        (["--reward_data", "{validation: 0}", "--eval_strategy", "epoch"], "validation above 0"),
        (["--reward_data", "{largets: 3}"], "no setting 'largets'; did you mean 'largest'"),
        (["--template", "{q}"], "reasoning_gym:sums (test), example 0: no column 'q'"),
    ],
)
def test_mistakes_with_data_that_a_reward_makes(sums, capsys, flags, message):
    assert message in fails(capsys, "train", sums, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapt", "suffix"], "adapt='suffix' is not for a reward"),
        (["--max_new_tokens", "0"], "max_new_tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--stop", "['']"], "stop"),
        (["--chat", "true"], "chat template"),
        (["--completion", "{text}"], "one of these"),
        (["--reward", "nowhere.py:f"], "nowhere.py"),
        (["--shaping", "odd"], "shaping"),
        (["--template", "{words}"], "no column 'words'"),
        (["--max_length", "4"], "max_length=4"),
    ],
)
def test_mistakes_are_one_line_before_any_work(folder, capsys, flags, message):
    assert message in fails(capsys, "train", folder / "config.yaml", *flags)


@pytest.mark.parametrize("name", ["temperature", "stop", "reward_timeout"])
def test_settings_of_rewards_need_one(folder, capsys, name):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["reward"], values["max_new_tokens"]
    given = {"temperature": 1.0, "chat": True, "stop": "x", "reward_timeout": 3}[name]
    values |= {"completion": "{prompt}", name: given}
    (folder / "other.yaml").write_text(yaml.safe_dump(values))
    assert f"{name}=" in fails(capsys, "train", folder / "other.yaml")


def test_prompts_are_padded_on_the_left_with_their_columns():
    made = task()
    batch = made.collate([{"prompt": "it is", "n": 1}, {"prompt": "a dog and", "n": 2}])
    assert batch["input_ids"][0, 0] == PAD and batch["attention_mask"].tolist()[0] == [0, 1, 1]
    assert batch["prompt"] == ["it is", "a dog and"] and batch["columns"] == {"n": [1, 2]}


def test_a_template_takes_columns_and_leaves_room_for_the_completion():
    made = task(prompt="{text} was", max_length=10, max_new_tokens=6)
    found = made.encode({"text": "the movie with the great acting", "label": 1})
    assert len(found["input_ids"]) <= 4 and found["columns"]["label"] == 1
    with pytest.raises(ValueError, match="raise max_length"):
        task(max_length=8, max_new_tokens=6).encode({"prompt": "the film was very bad"})


def test_stop_strings_end_completions_and_are_cut_off():
    model = lively_llama()
    free = task(max_new_tokens=10)
    batch = free.collate([{"prompt": text} for text in PROMPTS])
    texts, _ = free.complete(model, batch)
    stop = texts[0].split()[2]
    texts_stopped, tokens = task(max_new_tokens=10, stop=stop).complete(model, batch)
    for whole, cut, row in zip(texts, texts_stopped, tokens, strict=True):
        assert cut == whole.split(stop)[0]
        assert len(row) <= 10
    assert len(tokens[0]) <= 3


def test_a_description_makes_the_same_task():
    made = task(prompt="{text} :", stop=["x"], temperature=0.5, adapt="answer")
    again = task_from_dict(made.to_dict(), tiny_tokenizer(add_special_tokens=False))
    assert isinstance(again, RewardTask) and again.to_dict() == made.to_dict()


def test_it_has_no_losses_of_given_texts():
    with pytest.raises(TypeError, match="reward_funcs"):
        task().losses(torch.nn.Identity(), {})
