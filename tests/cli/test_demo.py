import json

import pytest
from matplotlib.figure import Figure

from adazeta.demo import data, run
from adazeta.demo.plot import plot
from adazeta.support.memory import PeakMemory
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
    monkeypatch.setattr(run, "TASK", {**run.TASK, **task})
    monkeypatch.setattr(run, "ADAPTERS", {**run.ADAPTERS, "bottleneck": 8, "layers": "last:2"})
    small = {"per_device_train_batch_size": 4, "probes": "2", "eval_steps": 2, "save_steps": 2}
    monkeypatch.setattr(run, "TRAINING", {**run.TRAINING, **small, "disable_tqdm": True})
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


def test_peak_memory_sees_an_allocation():
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        block = bytearray(200 * 2**20)
        block[:: 4096] = b"x" * len(block[:: 4096])
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
