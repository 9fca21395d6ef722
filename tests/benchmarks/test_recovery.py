"""``recovery``: rounding, its arms, its rows, going on, and what its table says."""

import json
from pathlib import Path

import pytest
import torch

from adazeta.runs.run import prepare_from
from benchmarks.__main__ import main
from benchmarks.measure.harness import Cell, Options
from benchmarks.report.tables.recovery import ARMS, NO_RECOVERY, recovery_table
from benchmarks.subjects.rounding import round_blocks, rounded
from benchmarks.suites import recovery
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import WORDS, tiny_llama, tiny_tokenizer

METRICS = ("agreement", "accuracy", "divergence", "seconds")


def made_up(count):
    """Texts whose first word tells the label."""
    first = (["red", "cat"], ["green", "dog"])
    return [
        {"text": f"{first[k % 2][k // 2 % 2]} {WORDS[-1 - k // 2]} film", "label": k % 2}
        for k in range(count)
    ]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    model = tiny_llama(hidden=64, layers=3)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_special_tokens=False).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(recovery, "model_file", lambda: tmp_path / "model")
    monkeypatch.setattr(
        recovery,
        "film_reviews",
        lambda sizes: {name: made_up(min(size, 16)) for name, size in sizes.items()},
    )
    monkeypatch.setattr(recovery, "TASK", words := {
        "template": "{text} it was", "label_words": {0: "terrible", 1: "great"},
    })  # fmt: skip
    changed = {**recovery.SETTINGS, **words, "per_device_train_batch_size": 8, "disable_tqdm": True}
    changed |= {"layers": "last:1", "components": 4, "cache_trunk": "memory"}
    monkeypatch.setattr(recovery, "SETTINGS", changed)
    monkeypatch.setattr(recovery, "PROMPT", "a film :")
    monkeypatch.setattr(recovery, "TEXTS", 12)
    monkeypatch.setattr(recovery, "LONGEST", 5)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_group_has_no_more_levels_than_its_bits_allow(bits):
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    weight[0, :64] = 0.5  # a group of one value
    found = rounded(weight, bits)
    for row, before in zip(found.view(-1, 64), weight.view(-1, 64), strict=True):
        assert len(row.unique()) <= 2**bits
        step = (before.max() - before.min()) / (2**bits - 1)
        assert (row - before).abs().max() <= step / 2 * 1.001
        assert torch.allclose(row.aminmax()[0], before.min(), atol=1e-5)
    with pytest.raises(ValueError, match="100 columns are no whole number of groups of 64"):
        rounded(torch.zeros(2, 100), 3)


def test_fewer_bits_say_something_else_more_often():
    whole = tiny_llama(hidden=64)
    ids = torch.arange(5, 60).view(5, 11)
    divergences = []
    for bits in (8, 3, 2):
        model = tiny_llama(hidden=64)
        names = round_blocks(model, bits)
        assert len(names) == 14 and not any("lm_head" in name for name in names)
        assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
        with torch.no_grad():
            teacher, student = (m(input_ids=ids).logits.log_softmax(-1) for m in (whole, model))
        divergences.append(float((teacher.exp() * (teacher - student)).sum(-1).mean()))
    assert 0 < divergences[0] < divergences[1] < divergences[2]


def test_arms_are_trained_and_tested_and_a_call_goes_on(tiny, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    command = ["recovery", "--seeds", "0,", "--json", str(file)]
    seen = []

    def watched(settings):
        seen.append(dict(settings))
        lines = Path(settings["train_data"]).read_text().splitlines()
        records = [json.loads(line) for line in lines]
        labels = [record["label"] for record in records if "label" in record]
        assert sum(labels) == len(labels) / 2  # a part of a split would have one label
        assert all(set(record) == {"text"} for record in records) or "teacher" not in settings
        return prepare_from(settings)

    monkeypatch.setattr(recovery, "prepare_from", watched)
    monkeypatch.setattr(recovery, "CHANCE", 0.0)
    assert main([*command, "--only", "int3"]) == 0
    rows = json.loads(file.read_text())
    check_rows(rows)
    modes = [f"int3 {arm}" for arm in ("none", "random", "generated", "bias", *ARMS)]
    assert [row["mode"] for row in rows[::4]] == [*modes[:4], *modes[-3:]]
    assert [row["metric"] for row in rows] == [*METRICS] * 7
    assert [run.get("hardest") for run in seen] == [1.0, 1.0, 0.5, 1.0, None]
    assert "teacher" not in seen[-1]
    assert all(row["config"]["settings"]["group"] == 64 for row in rows)
    monkeypatch.setattr(recovery, "prepare_from", lambda _: pytest.fail("it was there already"))
    assert main([*command, "--only", "int3"]) == 0
    assert json.loads(file.read_text()) == rows
    # Of a model that tells nothing, nothing but that is written.
    monkeypatch.setattr(recovery, "CHANCE", 1.1)
    assert main([*command, "--only", "int2"]) == 0
    more = json.loads(file.read_text())[len(rows) :]
    assert {row["mode"] for row in more} == {"int2 none"}
    assert 0 <= more[0]["config"]["with_bias"] <= 1


def test_random_texts_are_as_long_as_the_others_and_drawn_by_the_seed(tiny):
    like = [{"text": "a film"}, {"text": "the story was very dull"}]
    found = recovery.random_texts(like, 0)
    assert found == recovery.random_texts(like, 0) != recovery.random_texts(like, 1)
    assert [len(one["text"].split()) for one in found] == [2, 5]


def rows_of(arm, seed, agreement, student="int3", accuracy=0.7, with_bias=0.6):
    cell = Cell("recovery", "train", f"{student} {arm}", "seed", seed, "cpu")
    config = {"teacher_accuracy": 0.776, "test": 1000, "with_bias": with_bias}
    values = {"agreement": agreement, "accuracy": accuracy, "divergence": 0.1, "seconds": 1.0}
    return [cell.row(arm, name, "1", [value], config) for name, value in values.items()]


def filled(agreements, **options):
    return [
        row
        for arm, values in agreements.items()
        for seed, value in enumerate(values)
        for row in rows_of(arm, seed, value, **options)
    ]


def test_the_table_says_what_works_and_what_does_not():
    assert recovery_table([]) == NO_RECOVERY
    agreements = {
        "none": [0.7, 0.7, 0.7], "random": [0.75, 0.75, 0.75], "generated": [0.8, 0.79, 0.82],
        "bias": [0.72, 0.72, 0.72], "hardest": [0.75, 0.75, 0.75], "real": [0.85] * 3,
        "labels": [0.84] * 3,
    }  # fmt: skip
    rows = [*filled(agreements), *rows_of("none", 0, 0.5, "int2", with_bias=0.51)]
    table = recovery_table(rows)
    assert "| int3 | nothing trained | 70.0% | - | 70.0% | 0.100 | 3 |" in table
    assert "| int3 | film reviews without labels | 85.0% | 50% | 70.0% | 0.100 | 3 |" in table
    assert "The teacher's accuracy is 77.6%" in table
    assert "int3, generated texts: **works**; they win back 33%, 30%, 40%" in table
    assert "+5.3 points over random tokens" in table
    assert "int3, more than a bias: **works**, +8.3 points" in table
    assert "int3, the hardest half: **worse**, -5.3 points" in table
    assert "the teacher gives +1.0 points of agreement over labels" in table
    assert "int2: nothing was trained; with the best bias its accuracy is 51.0%" in table


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"generated": [0.8, 0.78, 0.82]}, "**no gain at this scale**"),  # 27% with one seed
        ({"random": [0.9, 0.9, 0.9]}, "**no gain at this scale**"),
        ({"generated": [0.6, 0.7, 0.62]}, "**worse**"),
        ({"random": []}, "open, as there are 3 seeds of three and no random tokens"),
        ({"generated": [0.8, 0.82]}, "open, as there are 2 seeds of three"),
    ],
)
def test_generated_texts_are_judged_by_what_was_written_down(changed, said):
    agreements = {"none": [0.7] * 3, "random": [0.75] * 3, "generated": [0.8] * 3, **changed}
    assert f"int3, generated texts: {said}" in recovery_table(filled(agreements))


def test_nothing_small_is_measured():
    with pytest.raises(recovery.Refused, match="no small size"):
        recovery.rows(Options(small=True))
