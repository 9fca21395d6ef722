"""``large_batch``: its arms, its rows, going on, and what its tables say."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.measure.harness import Cell, Options
from benchmarks.report.tables.large_batch import (
    ADVERSARIAL,
    EXTRAPOLATION,
    NO_ROWS,
    adversarial_table,
    extrapolation_table,
)
from benchmarks.subjects import review_classifier
from benchmarks.suites import large_batch
from tests.helpers.made_up_texts import made_up
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_tokenizer

METRICS = {"dev_loss", "dev_accuracy", "test_accuracy", "seconds"}
FOLLOWED = {*METRICS, "train_loss_at_quarter"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tiny_bert_mlm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(large_batch, "encoder_folder", lambda: tmp_path / "model")
    monkeypatch.setattr(review_classifier, "encoder_folder", lambda: tmp_path / "model")
    monkeypatch.setattr(
        large_batch, "film_reviews", lambda sizes: {name: made_up(16) for name in sizes}
    )
    monkeypatch.setattr(large_batch, "SIZES", {"train": 16, "dev": 16, "test": 16})
    monkeypatch.setattr(large_batch, "LARGE", 8)
    small = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8}
    monkeypatch.setattr(large_batch, "SMALL", 4)
    monkeypatch.setattr(large_batch, "COMMON", {**large_batch.COMMON, **small})
    arms = {
        name: arm._replace(rates=arm.rates[:1], batch=4 if name == "small" else 8)
        for name, arm in large_batch.ARMS.items()
    }
    monkeypatch.setattr(large_batch, "ARMS", arms)


def test_every_arm_is_trained_and_a_call_goes_on(tiny, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    command = ["large_batch", "--seeds", "0,", "--json", str(file)]
    assert main([*command, "--only", "local"]) == 0  # and its first half
    assert main(command) == 0
    rows = json.loads(file.read_text())
    check_rows(rows)
    found = {}
    for row in rows:
        found.setdefault(row["mode"], {})[row["metric"]] = row
    assert found.keys() == large_batch.ARMS.keys()
    for name, metrics in found.items():
        assert set(metrics) == (FOLLOWED if name in EXTRAPOLATION else METRICS)
    assert found["none"]["dev_loss"]["config"]["steps"] == 12
    assert found["small"]["dev_loss"]["config"]["steps"] == 24
    looks = found["none"]["dev_loss"]["config"]["looks"]
    assert looks["step"] == [float(step) for step in range(1, 13)]
    assert found["none"]["train_loss_at_quarter"]["median"] == looks["train_loss"][2]
    assert looks["dev_loss"][-1] == found["none"]["dev_loss"]["median"]
    ends = {name: metrics["dev_loss"]["median"] for name, metrics in found.items()}
    assert len(set(ends.values())) == len(ends)  # every arm is another training
    monkeypatch.setattr(large_batch, "trained", lambda *_: pytest.fail("it was there already"))
    assert main(command) == 0
    assert json.loads(file.read_text()) == rows
    assert "- `local`: **" in extrapolation_table(rows)
    assert "- Moving embeddings uphill: **" in adversarial_table(rows)


def test_the_loss_that_is_followed_is_of_both_labels_and_scales_are_of_small_batches(
    tiny, monkeypatch
):
    made = []
    trainer = review_classifier.FOTrainer

    def kept(*arguments, **options):
        made.append((arguments[1], options["eval_dataset"]))
        return trainer(*arguments, **options)

    monkeypatch.setattr(review_classifier, "FOTrainer", kept)
    monkeypatch.setattr(large_batch, "LOOKED", 4)
    grouped = sorted(made_up(16), key=lambda record: record["label"])  # as film_reviews are
    monkeypatch.setattr(large_batch, "film_reviews", lambda sizes: dict.fromkeys(sizes, grouped))
    large_batch.rows(Options(only="extrapolation local", seeds=(0,)))
    for args, sets in made:
        assert [example["labels"] for example in sets["train"]] == [0, 0, 1, 1]
        assert args.extrapolation_scale == args.learning_rate / 2


def test_arms_are_those_of_the_tables():
    assert tuple(large_batch.ARMS) == (*EXTRAPOLATION, *ADVERSARIAL)
    parts = {name: arm.part for name, arm in large_batch.ARMS.items()}
    assert parts == {
        **dict.fromkeys(EXTRAPOLATION, "extrapolation"),
        **dict.fromkeys(ADVERSARIAL, "adversarial"),
    }


def rows_of(arm, seed, rate, loss, quarter=0.6, seen=(0.6, 0.7, 0.8)):
    cell = Cell("large_batch", "train", arm, "seed", seed, "cpu")
    looks = {"step": [2, 4, 6], "dev_accuracy": list(seen)}
    config = {"rate": rate, "steps": 6, "looks": looks}
    values = {
        "dev_loss": loss, "dev_accuracy": seen[-1], "train_loss_at_quarter": quarter,
        "test_accuracy": 0.75, "seconds": 20,
    }  # fmt: skip
    return [cell.row(f"rate_{rate:g}", k, "1", [v], config) for k, v in values.items()]


def of_extrapolation(quarter=0.5, loss=0.48):
    rows = []
    for seed in (0, 1, 2):
        for rate, worse, end in ((0.01, 0.1, 0.8), (0.03, 0.0, 0.8), (0.1, -0.1, 0.7)):
            seen = (0.6, 0.7, end)
            rows += rows_of("none", seed, rate, 0.5 + worse + seed / 100, seen=seen)
            rows += rows_of("local", seed, rate, loss + worse + seed**2 / 100, quarter, seen)
    return extrapolation_table(rows)


def test_the_table_of_extrapolation_says_what_the_criterion_asks():
    assert extrapolation_table([]) == NO_ROWS
    table = of_extrapolation()
    assert "| none | 0.03 | 0.600 | 0.510 | 80.0% | 75.0% | 20 s | 3 |" in table
    assert "`local`: **works**" in table and "in 3 of 3 seeds" in table
    assert "**no gain at this scale**" in of_extrapolation(loss=0.503)  # between the errors
    assert "**worse**" in of_extrapolation(loss=0.6)
    assert "**worse**" in of_extrapolation(quarter=0.7)
    only = extrapolation_table(rows_of("none", 0, 0.1, 0.5) + rows_of("none", 0, 0.3, 0.6))
    assert "| none | 0.1 (an end) |" in only and "**" not in only


def of_adversaries(uphill):
    rows = []
    for seed in (0, 1):
        rows += rows_of("small", seed, 0.001, 0.5, seen=(0.5, 0.6, 0.7))
        rows += rows_of("lamb", seed, 0.01, 0.5, seen=(0.6, 0.7, 0.8))
        rows += rows_of("lamb_random", seed, 0.01, 0.5, seen=(0.5, 0.6, 0.65))
        rows += rows_of("lamb_gradient", seed, 0.01, 0.5, seen=uphill)
    return adversarial_table(rows)


def test_the_table_of_adversaries_says_what_the_criterion_asks():
    assert adversarial_table([]) == NO_ROWS
    table = of_adversaries((0.71, 0.8, 0.8))
    assert "| LAMB | 0.01 | 6 | 4, 4 | 80.0% | 75.0% | 20 s | 2 |" in table
    assert "| LAMB, embeddings moved at random | 0.01 | 6 | never, never |" in table
    assert "| AdamW, batches of 32 | 0.001 | 6 | - |" in table
    assert "uphill: **works**" in table and "in 2 of 2 seeds" in table
    assert "**no gain at this scale**" in of_adversaries((0.6, 0.7, 0.8))  # as many steps
    assert "**worse**" in of_adversaries((0.5, 0.6, 0.7))
    assert "**" not in adversarial_table(rows_of("lamb", 0, 0.01, 0.5))


def test_nothing_small_is_measured():
    with pytest.raises(large_batch.Refused, match="no small size"):
        large_batch.rows(Options(small=True))
