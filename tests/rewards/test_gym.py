"""Tasks of reasoning-gym: their scores, and data made of them."""

import json
import sys

import pytest

from adazeta.rewards.gym import SIZES, make_data
from adazeta.rewards.loading import load_rewards
from tests.helpers import gym

SMALL = {"train": 30, "validation": 5, "test": 10}


def questions(records):
    return [record["question"] for record in records]


@pytest.fixture
def sums(monkeypatch):
    gym.install(monkeypatch)


def test_its_own_scorer_is_the_reward(sums):
    data = make_data("sums", SMALL)["test"]
    entries = [data[0]["entry"], json.dumps(data[1]["entry"]), data[2]["entry"]]
    texts = [f" {data[0]['answer']}\n", "7000", "no"]
    rewards = load_rewards("reasoning_gym:sums", folder=None)
    assert rewards(["p"] * 3, texts, entry=entries).total.tolist() == [1.0, 0.1, 0.0]


def test_an_answer_in_tags_is_the_answer(sums):
    entry = {"question": "1 and 2 is", "answer": "3", "metadata": {"numbers": (1, 2)}}
    texts = ["1 and 2 <answer>7</answer>, no: <answer>\n3 </answer>.", "<answer>3", "3"]
    found = load_rewards("reasoning_gym:sums", folder=None)(["p"] * 3, texts, entry=[entry] * 3)
    assert found.total.tolist() == [1.0, 0.0, 1.0]


def test_what_a_model_writes_is_not_run(sums, monkeypatch):
    seen = []

    def scorer(answer, entry):
        seen.append(answer)
        return 0.0

    monkeypatch.setattr(
        sys.modules["reasoning_gym"].factory, "get_score_answer_fn", lambda n: scorer
    )
    texts = ["(1 + 2)*3 / 4", "__import__('os')", "9**9**9", "9*" * 200, "<answer>exit()</answer>"]
    rewards = load_rewards("reasoning_gym:countdown", folder=None)
    rewards(["p"] * 5, texts, entry=[{}] * 5)
    assert seen == [texts[0], "", "", "", ""]
    with pytest.raises(ValueError, match="evaluates what the model writes as Python"):
        load_rewards("reasoning_gym:simple_integration", folder=None)


def test_the_sets_have_their_sizes_and_no_question_in_common(sums):
    made = make_data("sums", {"largest": 9, **SMALL})
    assert {name: len(records) for name, records in made.items()} == SMALL
    every = [question for records in made.values() for question in questions(records)]
    assert len(set(every)) == len(every)
    record = made["train"][0]
    assert record["prompt"] == record["question"] == record["entry"]["question"]
    assert record["answer"] == record["entry"]["answer"]
    assert "test" not in make_data("sums", {**SMALL, "test": 0})
    assert len(make_data("sums", {"largest": 900})["train"]) == SIZES["train"]


def test_the_seed_decides_and_the_test_set_does_not_hang_on_the_others(sums):
    first, again = make_data("sums", SMALL), make_data("sums", {**SMALL, "seed": 0})
    assert first == again
    larger = make_data("sums", {**SMALL, "train": 60})
    assert larger["test"] == first["test"] and larger["validation"] == first["validation"]
    # Item k of the package's seed s is drawn from s + k: neighbouring seeds would share nearly all.
    other = make_data("sums", {**SMALL, "seed": 1, "largest": 900})
    assert not set(questions(other["train"])) & set(
        questions(make_data("sums", {**SMALL, "largest": 900})["train"])
    )


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("sum", {}, "no task 'sum'; did you mean 'sums'"),
        ("sums", {"largets": 3}, "no setting 'largets'; did you mean 'largest'"),
        ("sums", {"size": 3}, "no setting 'size'"),
        ("sums", {"train": 0}, "train is 0"),
        ("sums", {"test": -1}, "test is a whole number, 0 or more, got -1"),
        ("sums", {"largest": 0}, "sums refuses {'largest': 0}: largest must be positive"),
        ("sums", {"largest": 3}, "has 9 different questions among 27000 .* 1300 are asked for"),
    ],
)
def test_what_cannot_be_made_is_refused(sums, task, settings, message):
    with pytest.raises(ValueError, match=message):
        make_data(task, settings)


def test_a_missing_package_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"pip install 'adazeta\[rewards\]'"):
        make_data("chain_sum", {})


def test_the_package_itself():
    pytest.importorskip("reasoning_gym")
    made = make_data("chain_sum", {**SMALL, "min_terms": 2, "max_terms": 2, "max_digits": 2})
    assert {name: len(records) for name, records in made.items()} == SMALL
    data = made["test"]
    rewards = load_rewards("reasoning_gym:chain_sum", folder=None)
    texts, entries = [data[0]["answer"], "none"], [one["entry"] for one in data[:2]]
    assert rewards(["p"] * 2, texts, entry=entries).total.tolist() == [1.0, 0.0]
    (one,) = make_data("countdown", {"train": 1, "validation": 0, "test": 0})["train"]
    texts = [f"so <answer>{one['answer']}</answer>", "open('x', 'w')", "9**9**9**9"]
    found = load_rewards("reasoning_gym:countdown", folder=None)(
        ["p"] * 3, texts, entry=[one["entry"]] * 3
    )
    assert found.total.tolist() == [1.0, 0.01, 0.01]
    with pytest.raises(ValueError, match="refuses .*min_terms must be positive"):
        make_data("chain_sum", {"min_terms": 0})
    with pytest.raises(ValueError, match="no task 'chain_sun'; did you mean 'chain_sum'"):
        make_data("chain_sun", {})
