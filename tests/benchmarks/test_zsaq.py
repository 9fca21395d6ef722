"""``zsaq``: its linears, its two players, its arms, its rows, going on, and what its table says."""

import copy
import json

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.measure.harness import Cell, Options
from benchmarks.report.tables.zsaq import ARMS, NO_GAME, zsaq_table
from benchmarks.subjects import review_classifier
from benchmarks.subjects.fake_quantised import FakeQuantised, fake_quantise
from benchmarks.subjects.rounding import rounded
from benchmarks.subjects.two_players import Generator, ascend, descend, divergence
from benchmarks.suites import zsaq
from tests.helpers.made_up_texts import made_up
from tests.helpers.rows import check_rows
from tests.helpers.tiny_models import tiny_bert_cls, tiny_bert_mlm, tiny_llama, tiny_tokenizer

METRICS = ["agreement", "accuracy", "divergence", "random_divergence", "seconds"]


class Players:
    """A teacher, its student, and a generator, with tokens."""

    def __init__(self, bits=2):
        self.draws = torch.Generator().manual_seed(0)
        self.teacher = tiny_bert_cls(hidden=64).requires_grad_(False)
        with torch.no_grad():
            self.teacher.classifier.weight.mul_(50)  # it tells texts apart
        self.student = copy.deepcopy(self.teacher)
        if bits is not None:
            fake_quantise(self.student.base_model, bits)
        self.trained = list(self.student.bert.encoder.requires_grad_().parameters())
        table = self.teacher.get_input_embeddings().weight
        blocks = tiny_llama(hidden=64).base_model
        self.generator = Generator(blocks, table, (1, 2), self.ids(), self.draws)

    def ids(self):
        return torch.randint(112, (6, 7), generator=self.draws)

    @torch.no_grad()
    def divergence(self, ids):
        return float(divergence(self.teacher, self.student, self.generator(ids)))

    def made(self, ids):
        with torch.no_grad():
            return self.generator(ids)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_group_has_no_more_levels_than_its_bits_allow(bits):
    draws = torch.Generator().manual_seed(0)
    linear = nn.Linear(128, 6, bias=False)
    low = FakeQuantised(linear, bits)
    # Of unit vectors the outputs are the weights that it computes with.
    weight = low(torch.eye(128)).detach().T
    assert torch.equal(weight, rounded(linear.weight, bits))
    assert all(
        len(group.unique()) <= 2**bits for group in rounded(linear.weight, bits).view(-1, 64)
    )
    # A token's levels do not depend on the others.
    tokens = torch.randn(2, 5, 128, generator=draws)
    assert torch.equal(low(torch.cat((tokens, 100 * tokens), 1))[:, :5], low(tokens))
    with pytest.raises(ValueError, match="100 columns are no whole number of groups of 64"):
        FakeQuantised(nn.Linear(100, 2), bits)


def test_gradients_pass_the_rounding_and_weights_are_shared():
    linear = nn.Linear(64, 3)
    low = FakeQuantised(linear, 2)
    assert low.weight is linear.weight and low.bias is linear.bias
    tokens = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    low(tokens).sum().backward()
    seen = rounded(tokens, 8, 64).sum(0)
    assert torch.allclose(linear.weight.grad, seen.expand(3, -1), atol=1e-5)
    assert torch.allclose(tokens.grad, rounded(linear.weight, 2).sum(0).expand(4, -1), atol=1e-5)


def test_embeddings_of_a_generator_are_like_those_of_words():
    players = Players()
    players.draws.manual_seed(0)
    made = players.made(players.ids())["inputs_embeds"]
    table = players.teacher.get_input_embeddings().weight
    assert made.shape == (6, 9, 64)
    assert torch.equal(made[:, 0], table[1].expand(6, -1))
    assert torch.equal(made[:, -1], table[2].expand(6, -1))
    inner, middle = made[:, 1:-1].flatten(0, 1), table.mean(0)
    assert torch.allclose(inner.mean(0), middle, atol=1e-5)
    wanted = (table - middle).norm(dim=1).mean()
    assert float((inner - middle).norm(dim=1).mean()) == pytest.approx(float(wanted), rel=1e-4)


def test_without_rounding_there_is_nothing_to_play_for():
    players = Players(bits=None)
    loss = divergence(players.teacher, players.student, players.generator(players.ids()))
    assert float(loss.detach()) == 0
    every = [*players.trained, *players.generator.trained()]
    gradients = torch.autograd.grad(loss, every)
    assert len(gradients) > 20 and all(float(each.abs().max()) < 1e-5 for each in gradients)
    rounds = Players()
    loss = divergence(rounds.teacher, rounds.student, rounds.generator(rounds.ids()))
    gradients = torch.autograd.grad(loss, [*rounds.trained, *rounds.generator.trained()])
    assert max(float(each.abs().max()) for each in gradients) > 1e-3


def test_without_a_radius_the_players_take_turns_by_plain_gradients():
    players, alone = Players(), Players()
    up = torch.optim.SGD(players.generator.trained(), lr=0.01, maximize=True)
    down = torch.optim.SGD(players.trained, lr=0.1)
    for step in range(3):
        ids = players.ids()
        ascend(players.generator, ids, players.teacher, players.student, up)
        descend(players.teacher, players.student, players.trained, players.made(ids), down)
        ids, phi = alone.ids(), alone.generator.trained()
        loss = divergence(alone.teacher, alone.student, alone.generator(ids))
        for parameter, gradient in zip(phi, torch.autograd.grad(loss, phi), strict=True):
            parameter.data.add_(gradient, alpha=0.01)
        loss = divergence(alone.teacher, alone.student, alone.made(ids))
        theta = torch.autograd.grad(loss, alone.trained)
        for parameter, gradient in zip(alone.trained, theta, strict=True):
            parameter.data.add_(gradient, alpha=-0.1)
        ours = [*players.trained, *players.generator.trained()]
        theirs = [*alone.trained, *phi]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), step


def test_a_step_up_raises_the_divergence_and_one_of_sam_lowers_it():
    players = Players()
    ids = players.ids()
    teacher = copy.deepcopy(players.teacher.state_dict())
    before = players.divergence(ids)
    up = torch.optim.SGD(players.generator.trained(), lr=0.01, maximize=True)
    assert ascend(players.generator, ids, players.teacher, players.student, up) == before
    assert all(parameter.grad is None for parameter in players.trained)
    above = players.divergence(ids)
    assert above > before > 0
    down = torch.optim.SGD(players.trained, lr=0.05)
    first = copy.deepcopy(players.student)
    said = descend(players.teacher, players.student, players.trained, players.made(ids), down, 0.05)
    assert said == pytest.approx(above)
    assert players.divergence(ids) < above
    # The gradient of SAM is another than the plain one.
    trained = list(first.bert.encoder.parameters())
    down = torch.optim.SGD(trained, lr=0.05)
    descend(players.teacher, first, trained, players.made(ids), down)
    assert not torch.equal(first.bert.encoder.layer[0].output.dense.weight,
                           players.student.bert.encoder.layer[0].output.dense.weight)  # fmt: skip
    after = players.teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in teacher.items())


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tiny_bert_mlm(hidden=64).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    tiny_llama(hidden=64, layers=3).save_pretrained(tmp_path / "generator")
    for module in (zsaq, review_classifier):
        monkeypatch.setattr(module, "encoder_folder", lambda: tmp_path / "encoder")
    monkeypatch.setattr(zsaq, "model_file", lambda: tmp_path / "generator")
    monkeypatch.setattr(zsaq, "film_reviews", lambda _: dict.fromkeys(zsaq.SIZES, made_up(16)))
    monkeypatch.setattr(zsaq, "SIZES", {"train": 16, "test": 16})
    monkeypatch.setattr(zsaq, "TEACHER", {**zsaq.TEACHER, "per_device_train_batch_size": 8})
    for name, value in {"STEPS": 12, "BATCH": 4, "TOKENS": 6, "HELD_OUT": 8}.items():
        monkeypatch.setattr(zsaq, name, value)


def test_arms_are_trained_and_tested_and_a_call_goes_on(tiny, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    command = ["zsaq", "--seeds", "0,", "--json", str(file)]
    assert main([*command, "--only", "w2a8 rounded"]) == 0
    assert main(command) == 0
    rows = json.loads(file.read_text())
    check_rows(rows)
    found = {}
    for row in rows:
        found.setdefault(row["mode"], []).append(row)
    assert sorted(found) == sorted(f"w{bits}a8 {arm}" for bits in (2, 4) for arm in zsaq.ARMS)
    for mode, of in found.items():
        assert [row["metric"] for row in of] == METRICS
        assert len(of[2]["config"]["seen"]) == (0 if mode.endswith("rounded") else 6)
        assert ("generator" in of[0]["config"]) == ("zsaq" in mode)
        rate = of[0]["config"]["settings"].get("rate")
        assert rate is None or rate == zsaq.RATE / (10 if mode.endswith("slow") else 1)
    ends = {of[2]["median"] for of in found.values()}
    assert len(ends) == len(found)  # every arm is another training
    assert zsaq_table(rows).count("\n| W") == 16 and "open" in zsaq_table(rows)
    monkeypatch.setattr(zsaq, "Work", lambda *_: pytest.fail("it was there already"))
    assert main(command) == 0
    assert json.loads(file.read_text()) == rows
    monkeypatch.setattr(zsaq, "RATE", 1.0)  # of other settings is what was trained by that
    assert zsaq.is_current(found["w2a8 rounded"][0], 12, 16)
    assert not zsaq.is_current(found["w2a8 zsaq"][0], 12, 16)


def test_a_student_is_trained_but_for_embeddings_and_head(tiny):
    work = zsaq.Work({name: made_up(16) for name in zsaq.SIZES}, 0, 2, "cpu")
    assert not any(each.requires_grad for each in work.teacher.parameters())
    student, trained = work.student(2)
    assert type(student.classifier) is nn.Linear
    left = {name for name, each in student.named_parameters() if not each.requires_grad}
    assert left == {
        "classifier.weight", "classifier.bias", *(
            f"bert.embeddings.{kind}_embeddings.weight"
            for kind in ("word", "position", "token_type")
        ),
    }  # fmt: skip
    assert all(each is not its for each in trained for its in work.teacher.parameters())
    order = work._real(torch.Generator().manual_seed(0))
    batches = [next(order) for _ in range(4)]
    assert all("labels" not in batch for batch in batches)
    first = work._random(torch.Generator().manual_seed(0))["input_ids"]
    assert first.shape == (4, 6) and set(first[:, 0].tolist()) == {1}


def rows_of(arm, agreements, student="w2a8"):
    rows = []
    for seed, agreement in enumerate(agreements):
        cell = Cell("zsaq", "train", f"{student} {arm}", "seed", seed, "cpu")
        values = {
            "agreement": agreement, "accuracy": 0.7, "divergence": 0.1, "random_divergence": 0.2,
            "seconds": 20.0,
        }  # fmt: skip
        config = {"teacher_accuracy": 0.76}
        rows += [cell.row(arm, name, "1", [value], config) for name, value in values.items()]
    return rows


def table_of(**changed):
    arms = {"rounded": [0.6] * 3, "random": [0.7] * 3, "zsaq": [0.8] * 3, **changed}
    return zsaq_table([row for arm, values in arms.items() for row in rows_of(arm, values)])


@pytest.mark.parametrize(
    "changed, said",
    [
        ({}, "**works**, +10.0 points of agreement over random tokens (a standard error is 0.0)"),
        ({"zsaq": [0.71, 0.69, 0.72]}, "**no gain at this scale**"),  # within an error
        ({"random": [0.59] * 3}, "**no gain at this scale**"),  # random tokens lose
        ({"zsaq": [0.61] * 3}, "**no gain at this scale**"),  # below random, above rounded
        ({"zsaq": [0.6, 0.55, 0.5]}, "**worse**"),
        ({"zsaq": [0.6, 0.5, 0.69]}, "**no gain at this scale**"),  # within an error of rounded
        ({"zsaq": [0.8, 0.9]}, "open, as there are 2 seeds of three"),
    ],
)
def test_the_game_is_judged_by_what_was_written_down(changed, said):
    assert f"The game at W2A8: {said}" in table_of(**changed)


def test_the_table_has_what_there_is():
    assert zsaq_table([]) == NO_GAME
    assert set(ARMS) == set(zsaq.ARMS)
    table = zsaq_table(rows_of("real", [0.9, 0.8]) + rows_of("rounded", [0.95], "w4a8"))
    line = "| W2A8 | film reviews without labels | 85.0% | 70.0% | 0.100 | 0.200 | 20 s | 2 |"
    assert line in table and table.index("| W4A8 | nothing trained | 95.0%") < table.index(line)
    assert "The teachers' accuracy is 76.0%." in table and "The game" not in table


def test_nothing_small_is_measured():
    with pytest.raises(zsaq.Refused, match="no small size"):
        zsaq.rows(Options(small=True))
