import json

import pytest
import yaml
from matplotlib.figure import Figure

from adazeta.adapters.config import TTAdapterConfig
from adazeta.cli.settings_document import SECTIONS
from adazeta.demo import data, run
from adazeta.demo.plot import plot
from adazeta.models.arguments import ModelArguments
from adazeta.support.memory import PeakMemory
from adazeta.support.settings import build, settings_of
from adazeta.tasks.arguments import TaskArguments
from adazeta.training.arguments import ZOTrainingArguments
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

RATINGS = "\n".join(
    f"{k}\t{score}\t{text}"
    for k, (score, text) in enumerate(
        [(2.1, "a  ''great'' film"), (-1.5, "dull"), (0.4, "neither"), (2.1, 'a "great" film')]
    )
)


def test_sentences_are_cleaned_and_unclear_ones_left_out():
    assert data.parse(RATINGS) == {'a "great" film': 1, "dull": 0}


def test_splits_are_fixed_balanced_and_disjoint(monkeypatch):
    monkeypatch.setattr(data, "SPLIT_SIZES", {"train": 20, "dev": 10, "test": 10})
    labels = {f"sentence {k}": k % 2 for k in range(60)}
    splits = data.split(labels)
    again = data.split(dict(reversed(labels.items())))
    assert splits == again
    assert {name: len(records) for name, records in splits.items()} == data.SPLIT_SIZES
    texts = [record["text"] for records in splits.values() for record in records]
    assert len(set(texts)) == 40
    for records in splits.values():
        assert 2 * sum(record["label"] for record in records) == len(records)


def test_sentences_of_four_sources_are_each_there_once_and_half_of_them_in_all():
    texts = {
        label: "\n".join(f"{k}\t1.0\t{label}  sentence {k}" for k in range(40)) + "\n41\t0\tboth"
        for label in ("tweet", "film")
    }
    found = data.parse_sources(texts)
    assert 20 < len(found) < 60
    assert all(data.hashed(text)[0] < 128 for text in found)
    assert all(text == "both" or text.split()[0] == label for text, label in found.items())
    assert found.get("both", "tweet") == "tweet"


def test_too_few_texts_of_a_label_are_not_split():
    with pytest.raises(ValueError, match="label 'b' has 1 texts, and train needs 2"):
        data.split({"one": "a", "two": "a", "three": "b"}, {"train": 4})


def test_the_tasks_of_the_demo_hold_for_the_labels_of_their_data():
    assert set(run.TASKS["source"]["label_words"]) == set(data._SOURCES)
    assert set(run.TASKS) == set(run.EXAMPLES)


def test_a_damaged_download_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = data.Package("no-such-package-of-adazeta==1", "file.whl", "0" * 64)
    path = tmp_path / "adazeta" / "downloads" / package.filename
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match="no-such-package-of-adazeta==1"):
        data.fetch(package)


def test_the_whole_demo_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    tiny_llama(layers=3).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "river"]
    records = [{"text": f"a {w} film", "label": k % 2} for k, w in enumerate(words)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "model_file", lambda: tmp_path / "model")
    monkeypatch.setattr(
        run, "film_reviews", lambda: {name: records for name in ("train", "dev", "test")}
    )
    task = {"template": "{text} it was", "label_words": {0: "terrible", 1: "great"}}
    monkeypatch.setattr(run, "TASKS", {**run.TASKS, "film": task})
    small = {"components": 8, "per_device_train_batch_size": 4, "disable_tqdm": True}
    monkeypatch.setattr(run, "SETTINGS", {**run.SETTINGS, **small})
    from adazeta.cli import main

    output = tmp_path / "run"
    assert main(["demo", "--steps", "4", "--seed", "7", "--output", str(output)]) == 0
    report = json.loads((output / "report.json").read_text())
    assert {
        "test_accuracy_before", "test_accuracy_bias_corrected", "test_accuracy_after",
        "train_seconds", "steps", "evaluations", "peak_memory_mb", "inference_peak_memory_mb",
        "seed",
    } <= set(report)  # fmt: skip
    assert report["steps"] == 4 and report["seed"] == 7 and report["evaluations"] > 8
    assert (output / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "adapter_model.safetensors").is_file()
    assert "adazeta predict" in capsys.readouterr().out
    assert main(["predict", str(output), "a funny film"]) == 0
    assert main(["train", str(output / "config.yaml"), "--max_steps", "2"]) == 0


def test_the_demo_of_four_classes_reports_before_biases_and_after(tmp_path, monkeypatch, capsys):
    tiny_llama(layers=3).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "river"]
    labels = list(run.TASKS["source"]["label_words"])
    records = [{"text": f"a {w} film", "label": labels[k % 4]} for k, w in enumerate(words)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "model_file", lambda: tmp_path / "model")
    monkeypatch.setattr(
        run, "sources", lambda: {name: records for name in ("train", "dev", "test")}
    )
    task = {
        "template": "{text} it was",
        "label_words": dict(zip(labels, ["good", "bad", "dull", "funny"], strict=True)),
    }
    monkeypatch.setattr(run, "TASKS", {**run.TASKS, "source": task})
    small = {"components": 8, "per_device_train_batch_size": 4, "disable_tqdm": True}
    monkeypatch.setattr(run, "SETTINGS", {**run.SETTINGS, **small})
    from adazeta.cli import main

    output = tmp_path / "run"
    assert main(["demo", "--task", "source", "--output", str(output)]) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["task"] == "source" and report["steps"] == 2
    printed = capsys.readouterr().out
    assert "test accuracy before" in printed and "bias only" in printed
    assert main(["predict", str(output), "a red film"]) == 0


def test_the_example_of_the_earlier_settings_is_the_demos_task():
    path = ROOT / "examples" / "demo_tensor_train.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for kind in (ModelArguments, TaskArguments, TTAdapterConfig):
        build(kind, settings)
    assert build(ZOTrainingArguments, {**settings, "use_cpu": True}).max_steps == 400
    assert {name: settings[name] for name in run.TASKS["film"]} == run.TASKS["film"]
    names = [n for k in SECTIONS.values() for n in settings_of(k)]
    assert set(settings) <= set(names)


def test_peak_memory_sees_an_allocation():
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        block = bytearray(200 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
    assert large.mebibytes > small.mebibytes + 100


def test_the_legend_of_the_plot_lies_outside_the_axes(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    history = [{"step": k, "loss": 0.7 - k / 100, "evaluations": 2 * k} for k in (10, 20, 30)]
    history += [{"step": k, "eval_accuracy": 0.7 + k / 500} for k in (10, 20, 30)]
    plot(history, {"before": 0.685, "bias corrected": 0.76}, tmp_path / "plot.png")
    axes = drawn[0].axes[1]
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["dev", "before", "bias corrected"]
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
