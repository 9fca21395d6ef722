"""``embedding``: its arms, its rows, going on, and what its table says."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.__main__ import main
from benchmarks.measure.harness import Cell, Options
from benchmarks.report.tables.embedding import ARMS, NO_EMBEDDING, embedding_table
from benchmarks.suites import embedding
from tests.helpers.made_up_texts import made_up
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import tiny_tokenizer

SETS = ("film", "tweet", "amazon", "editorial")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(embedding, "embedder_folder", lambda: tmp_path / "model")
    monkeypatch.setattr(
        embedding, "film_reviews", lambda sizes: {k: made_up(16) for k, size in sizes.items()}
    )
    monkeypatch.setattr(embedding, "opinions", lambda name, size: made_up(8))
    monkeypatch.setattr(embedding, "SIZES", {"train": 16, "test": 16})
    monkeypatch.setattr(embedding, "PROMPTS", ("red cat", "green dog"))
    small = {"per_device_train_batch_size": 8, "warmup_steps": 0}
    monkeypatch.setattr(embedding, "SETTINGS", {**embedding.SETTINGS, **small})
    adapters = {**embedding.ADAPTERS, "bottleneck": 8, "rank": 2}
    monkeypatch.setattr(embedding, "ADAPTERS", adapters)


def test_arms_are_trained_and_tested_at_each_scale_and_a_call_goes_on(tiny, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    command = ["embedding", "--seeds", "0,", "--json", str(file)]
    trained, seen = embedding.FOTrainer, {}

    def kept(model, args, *, loss_fn, **options):
        trainer = trained(model, args, loss_fn=loss_fn, **options)
        dropped = {module.drop for module in model.modules() if hasattr(module, "drop")}
        seen[len(seen)] = (
            args.average, max(dropped), getattr(loss_fn, "couples_examples", False)
        )  # fmt: skip
        return trainer

    monkeypatch.setattr(embedding, "FOTrainer", kept)
    assert main([*command, "--only", "no_drop"]) == 0
    assert main(command) == 0
    assert list(seen.values()) == [
        (0.98, 0.0, True), (0.98, 0.2, True), (0.0, 0.2, True), (0.98, 0.2, False)
    ]  # fmt: skip
    rows = json.loads(file.read_text())
    check_rows(rows)
    assert [row["provider"] for row in rows] == [*SETS, "training"] * 4
    zero_shot = {}
    for row in rows:
        if row["provider"] == "training":
            continue
        config = row["config"]
        assert len(config["accuracies"]) == len(config["scales"]) == 5
        assert config["accuracies"][-1] == row["median"]
        zero_shot.setdefault(row["provider"], set()).add(config["accuracies"][0])
    # At scale 0 each arm is the model before training.
    assert all(len(values) == 1 for values in zero_shot.values())
    monkeypatch.setattr(embedding, "measured", lambda *_: pytest.fail("it was there already"))
    assert main(command) == 0
    assert json.loads(file.read_text()) == rows
    assert "Dropping: **" in embedding_table(rows)


def test_an_embedding_does_not_depend_on_padding(tiny):
    model = embedding.AutoModel.from_pretrained(embedding.embedder_folder()).eval()
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }
    one, other = (embedding.embeddings(model, inputs) for inputs in (short, padded))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(1))


def test_each_set_has_both_labels(tiny, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        embedding, "film_reviews", lambda sizes: asked.update(sizes) or dict.fromkeys(sizes, [])
    )
    monkeypatch.setattr(embedding, "opinions", lambda name, size: asked.update({name: size}) or [])
    embedding.loaded(embedding.SIZES)
    # By its sizes, since the records of a split are ordered by label.
    assert asked == {"train": 16, "test": 16, "tweet": 300, "amazon": 300, "editorial": 300}


def rows_of(arm, seed, film, others):
    cell = Cell("embedding", "train", arm, "seed", seed, "cpu")
    sets = {"film": film, **{name: others for name in SETS[1:]}}
    return [
        cell.row(name, "accuracy", "fraction", values[-1:],
                 {"accuracies": values, "scales": [0.0, 0.5, 1.0], "texts": 300})
        for name, values in sets.items()
    ]  # fmt: skip


def test_the_table_says_what_the_criterion_asks():
    assert embedding_table([]) == NO_EMBEDDING and tuple(embedding.ARMS) == ARMS
    table = embedding_table(
        [
            *rows_of("all", 0, [0.6, 0.7, 0.8], [0.7, 0.8, 0.75]),
            *rows_of("all", 1, [0.6, 0.8, 0.8], [0.7, 0.8, 0.75]),
            *rows_of("no_drop", 0, [0.6, 0.7, 0.75], [0.7, 0.75, 0.7]),
            *rows_of("no_average", 0, [0.6, 0.7, 0.8], [0.7, 0.79, 0.7]),
            *rows_of("cross_entropy", 0, [0.6, 0.6, 0.8], [0.7, 0.7, 0.85]),
        ]
    )
    assert "| all | film reviews | 60.0% | 75.0% | 80.0% | 2 |" in table
    assert "Re-scaling, all: **works**, at 0.5 the others have +5.0 points" in table
    assert "Re-scaling, cross_entropy: **no gain at this scale**" in table
    assert "Dropping: **works**, +5.0 points on the others" in table
    assert "The average: **no gain at this scale**, +1.0 points" in table
    assert "MPM-NCE in the place of the cross entropy: **worse**, -5.0 points" in table


def test_nothing_small_is_measured():
    with pytest.raises(embedding.Refused, match="no small size"):
        embedding.rows(Options(small=True))
