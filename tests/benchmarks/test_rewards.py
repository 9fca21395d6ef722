"""The tasks of the suite ``rewards``, and a run of it on a tiny model."""

import json

import pytest

from benchmarks.measure.harness import Options, Refused
from benchmarks.subjects import reward_tasks
from benchmarks.suites import rewards
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

SCORER = """
class SentimentIntensityAnalyzer:
    def polarity_scores(self, text):
        return {"compound": sum(c < "m" for c in text) / max(len(text), 1)}
"""


def test_rewards_score_what_they_say():
    assert reward_tasks.concise([], ["", "a", "x" * 200]) == [0.0, 1 - 1 / 200, 0.0]
    texts = ["<answer>4</answer>", "<answer>4", "so: <answer>4</answer>", "4"]
    assert reward_tasks.tagged([], texts) == pytest.approx([1, 1 / 3, 2 / 3, 0])
    found = reward_tasks.number([], ["is 7.", "8", "none", "-1"], answer=[7, 7, 7, 1])
    assert found == pytest.approx([1, 1 / 2, 0, 1 / 3])
    assert reward_tasks.listing([], ["a, b", "a, b, c, d, e", ""]) == pytest.approx([1 / 3, 1, 0])
    message = [{"role": "assistant", "content": "a"}]  # of a task with chat
    assert reward_tasks.concise([], [message]) == [1 - 1 / 200]
    assert reward_tasks.tagged([], [message]) == [0]
    assert reward_tasks.listing([], [message]) == [0]


@pytest.mark.parametrize("name", ["concise", "lists", "format", "chain_sum", "letters"])
def test_prompts_are_fixed_and_kept_apart(name):
    task = reward_tasks.TASKS[name]
    first, second = task.load(0), task.load(1)
    assert first == second
    prompts = {split: {row["prompt"] for row in rows} for split, rows in first.items()}
    assert not prompts["train"] & prompts["test"]
    assert all(len(prompts[split]) == len(rows) for split, rows in first.items())


def test_a_task_runs_and_reports_before_and_after(tmp_path, monkeypatch):
    tiny_llama(layers=3).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    (tmp_path / "scorer.py").write_text(SCORER)
    monkeypatch.setattr(rewards, "model_file", lambda: tmp_path / "model")
    monkeypatch.setattr(rewards, "sentiment_scorer", lambda: tmp_path / "scorer.py")
    monkeypatch.setitem(rewards.demo.SETTINGS, "layers", [1])
    monkeypatch.setitem(rewards.demo.SETTINGS, "components", 4)
    file = tmp_path / "rows.json"
    options = Options(small=True, tasks="letters", seeds=(0,), json=file)
    file.write_text(json.dumps([{"benchmark": "rewards", "op": "decode"}]))
    found = rewards.rows(options)
    assert json.loads(file.read_text())[0]["op"] == "decode"  # what is no run stays
    monkeypatch.setattr(rewards, "trained", lambda *_: pytest.fail("it was there already"))
    assert rewards.rows(options) == found
    metrics = {(row["provider"], row["metric"]) for row in found}
    assert {("zero_shot", "reward"), ("adazeta", "reward"), ("adazeta", "seconds")} <= metrics
    (start,) = [r for r in found if (r["provider"], r["metric"]) == ("zero_shot", "reward")]
    assert start["config"]["ci95_low"] <= start["median"] <= start["config"]["ci95_high"]
    json.dumps(found)


def test_an_unknown_task_is_refused():
    with pytest.raises(Refused, match="there is no task 'sudoku'"):
        rewards.rows(Options(tasks="sudoku"))
