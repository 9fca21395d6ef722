"""``adazeta demo rewards`` from end to end, on a tiny model."""

import json

import yaml

from adazeta.adapters.config import TTAdapterConfig
from adazeta.cli import main
from adazeta.demo import rewards
from adazeta.models.arguments import ModelArguments
from adazeta.support.settings import settings_of
from adazeta.tasks.arguments import TaskArguments
from adazeta.training.arguments import ZOTrainingArguments
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

SCORER = """
class SentimentIntensityAnalyzer:
    def polarity_scores(self, text):
        return {"compound": sum(c < "m" for c in text) / max(len(text), 1)}
"""


def test_openings_are_the_first_words_each_once():
    records = [{"text": "a b c d e f g"}, {"text": "a b c d e and so on"}, {"text": "too short"}]
    assert rewards.openings(records) == [{"prompt": "a b c d e"}]


def test_the_whole_demo_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    tiny_llama(layers=3).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    (tmp_path / "scorer.py").write_text(SCORER)
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "river"]
    records = [{"text": f"a {word} film was very good"} for word in words]
    monkeypatch.setattr(rewards, "model_file", lambda: tmp_path / "model")
    monkeypatch.setattr(rewards, "sentiment_scorer", lambda: tmp_path / "scorer.py")
    monkeypatch.setattr(
        rewards, "film_reviews", lambda sizes: {"train": records[:4], "test": records[4:]}
    )
    monkeypatch.setitem(rewards.SETTINGS, "layers", [1])
    monkeypatch.setitem(rewards.SETTINGS, "components", 4)
    output = tmp_path / "out"
    assert main(["demo", "rewards", "--output", str(output), "--steps", "3"]) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["steps"] == 3 and report["eps"] > 0
    assert 0 <= report["reward_before"] <= 1 and report["base_perplexity_before"] > 1
    told = capsys.readouterr().out
    assert "mean score" in told and "adazeta predict" in told
    settings = yaml.safe_load((output / "config.yaml").read_text())
    kinds = (ModelArguments, TaskArguments, TTAdapterConfig, ZOTrainingArguments)
    assert set(settings) <= {name for kind in kinds for name in settings_of(kind)}
    # The configuration trains the same again.
    again = ["--output_dir", str(tmp_path / "again")]
    assert main(["train", str(output / "config.yaml"), *again]) == 0
    one, two = (folder / "probes.log" for folder in (output, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()
    assert main(["predict", str(output), "a river film was very"]) == 0
