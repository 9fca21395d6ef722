"""Built-in rewards, on completions scored by hand."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from adazeta.rewards.built_in import BUILT_IN
from adazeta.rewards.loading import load_rewards
from tests.helpers.tiny_models import tiny_tokenizer


def scores(spec, completions, *, folder=None, **columns):
    total = load_rewards(spec, folder=folder)([""] * len(completions), completions, **columns).total
    return [None if math.isnan(value) else value for value in total.tolist()]


def conversation(text):
    return [{"role": "assistant", "content": text}]


def test_reference_answers():
    answers = ["The cat.", ["dog", "a cat"], {"text": ["red cat"], "answer_start": [3]}, None]
    assert scores("exact_match", ["cat"] * 4, answer=answers) == [1.0, 1.0, 0.0, None]
    assert scores("f1:solution", ["cat"] * 4, solution=answers)[2:] == [pytest.approx(2 / 3), None]
    assert scores("exact_match", [conversation("a Cat")], answer=["cat"]) == [1.0]
    assert scores("exact_match", ["5"], answer=[5]) == [1.0]
    assert scores("f1:the answer", ["x"], **{"the answer": ["x"]}) == [1.0]
    with pytest.raises(ValueError, match="'exact_match' needs the argument 'answer'"):
        scores("exact_match", ["x"], question=["y"])


def test_a_pattern_is_searched_for():
    assert scores(r"regex:(?i)answer: \d+$", ["So the ANSWER: 12", "answer: none"]) == [1.0, 0.0]


def test_the_shorter_length_over_the_longer():
    assert scores("length:4", ["a b", "a b c d", "a b  c d e f g h", ""]) == [0.5, 1.0, 0.5, 0.0]
    assert scores("length:4 characters", ["ab", "é" * 8]) == [0.5, 0.5]
    assert scores("length:4 tokens", ["", ""], completion_ids=[[1] * 5, []]) == [0.8, 0.0]
    with pytest.raises(ValueError, match="'length' needs the argument 'completion_ids'"):
        scores("length:4 tokens", ["x"])


def test_word_pairs_of_ones_own():
    """Those of the same prompt's other completions count as one's own."""
    rewards = load_rewards("distinct", folder=None)
    prompts = ["one", "one", "two", "two", "three"]
    texts = ["I am glad", "I am glad", "I am sad", "so so so", ""]
    assert rewards(prompts, texts).total.tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    chats = [conversation(text) for text in texts]
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert rewards(asked, chats).total.tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]


def test_json_is_that_of_the_standard():
    right = ['{"a": [1, 2.5, null]}', " 7\n", '"x"']
    wrong = ["{'a': 1}", "NaN", '{"a": 1} and more', "", "[" * 100_000]
    assert scores("json", right + wrong) == [1.0] * 3 + [0.0] * 5


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
}


def test_json_that_fits_a_schema(tmp_path):
    pytest.importorskip("jsonschema")
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    completions = ['{"age": 3}', '{"age": -3}', "{}", "age 3"]
    assert scores("json_schema:s.json", completions, folder=tmp_path) == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(FileNotFoundError, match="no file .*t.json"):
        scores("json_schema:t.json", [], folder=tmp_path)
    for text, message in (("[1]", "does not hold a JSON schema"), ('{"type": "x"}', "s.json: 'x'")):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            scores("json_schema:s.json", [], folder=tmp_path)


def test_a_schema_does_not_fetch_what_it_refers_to(tmp_path):
    pytest.importorskip("jsonschema")
    (tmp_path / "s.json").write_text('{"$ref": "http://localhost:1/schema.json"}')
    rewards = load_rewards("json_schema:s.json", folder=tmp_path)
    (fault,) = rewards(["p"], ["{}"]).faults
    assert "Unresolvable" in fault


def test_the_sentiment_of_vader():
    pytest.importorskip("vaderSentiment")
    good, bad, neither = scores("vader", ["A great film, I love it!", "An awful bore.", ""])
    assert good > 0.5 > 0 > bad and neither == 0.0


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, pad_token_id=0,
        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def test_a_classifier_judges_each_completion_by_itself(judge):
    texts = ["the movie was great fun", "bad", "a dull film " * 20]
    good = scores("classifier:model:good", texts, folder=judge)
    bad = scores("classifier:model:bad", texts, folder=judge)
    assert [g + b for g, b in zip(good, bad, strict=True)] == pytest.approx([1.0] * 3)
    assert len(set(good)) == 3
    assert [*scores("classifier:model:good", texts[1:2], folder=judge)] == good[1:2]
    with pytest.raises(ValueError, match="no label 'fine'; it has bad, good"):
        load_rewards("classifier:model:fine", folder=judge)


@pytest.mark.parametrize(
    ("spec", "package"),
    [
        ("json_schema:s.json", "jsonschema"),
        ("reasoning_gym:chain_sum", "reasoning_gym"),
        ("vader", "vaderSentiment.vaderSentiment"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_way_to_it(monkeypatch, spec, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'adazeta\[rewards\]'"):
        load_rewards(spec, folder=None)


def test_the_table_says_how_each_is_written():
    for name, reward in BUILT_IN.items():
        assert reward.usage.startswith(name) and reward.about


def test_the_docs_list_them_all():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    for each in BUILT_IN.values():
        usage = each.usage.replace("|", "\\|")
        assert f"| `{usage}` | {each.about} |" in page
