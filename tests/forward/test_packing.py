from unittest.mock import Mock

import pytest
import torch
from torch import nn

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.forward.logits import candidate_logits
from adazeta.forward.packing import choose_packing, packed, packing_of
from adazeta.recording.folder import LOG_NAME
from adazeta.support.batches import repeat_rows
from tests.helpers.packing import batch, trainer_of
from tests.helpers.runs import crash_after
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_opt

CANDIDATES = torch.tensor([7, 50, 21])
CAUSAL = [tiny_llama, tiny_gpt2, tiny_gemma2]


def tokens(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def float32() -> torch.dtype:
    return torch.float32


@torch.no_grad()
def last_logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    last = inputs["attention_mask"].sum(-1) - 1
    return candidate_logits(model, tokens(inputs), last, CANDIDATES)


@pytest.mark.parametrize("seed", range(6))
def test_every_token_has_one_place_and_every_text_is_whole(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (11 + seed,), generator=generator).tolist()
    inputs = batch(*lengths, seed=seed)
    packing = packing_of(inputs)
    assert packing is not None and packing.source.numel() <= 0.9 * inputs["input_ids"].numel()
    rows, columns = inputs["attention_mask"].nonzero(as_tuple=True)
    laid, lines, places = packing.apply(tokens(inputs), rows, columns, 1)
    assert torch.equal(laid["input_ids"][lines, places], inputs["input_ids"][rows, columns])
    assert torch.equal(laid["position_ids"][lines, places], columns)
    assert len({*zip(lines.tolist(), places.tolist(), strict=True)}) == sum(lengths)
    # What is left over begins anew too, so it belongs to no text.
    for line, start, length in zip(packing.line, packing.start, lengths, strict=True):
        end = int(start) + length
        rest = laid["position_ids"][line, end : end + 1]
        assert rest.tolist() in ([], [0])


@pytest.mark.parametrize(
    "inputs",
    [
        batch(5, 5, 5),
        batch(9, 8, 9, 9),
        {"input_ids": torch.ones(2, 3, dtype=torch.int64)},
        {"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 1]])},
        {"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 0]])},
    ],
    ids=["no padding", "little padding", "no mask", "on the left", "empty texts"],
)
def test_batches_that_stay_as_they_are(inputs):
    assert packing_of(inputs) is None


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("make", CAUSAL)
def test_the_logits_are_those_of_the_padded_batch(make, copies):
    model, inputs = make(), batch(13, 3, 1, 6, 7)
    stack = repeat_rows(inputs, copies) if copies > 1 else inputs
    packing = packing_of(inputs)
    with packed(packing, copies) as layout:
        found = last_logits(model, stack)
    assert layout is not None and layout.served
    # Sums over keys and products of other shapes are rounded elsewhere.
    torch.testing.assert_close(found, last_logits(model, stack), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("make", CAUSAL)
def test_texts_in_one_row_do_not_see_each_other(make):
    model, inputs = make(), batch(13, 3, 1, 6, 7)
    packing = packing_of(inputs)
    assert packing is not None and len(packing.source) < 5
    with packed(packing):
        before = last_logits(model, inputs)
        inputs["input_ids"][0] = 9  # the longest begins a row, others follow it there
        after = last_logits(model, inputs)
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])


def test_other_inputs_pass_as_they_are():
    model, inputs = tiny_llama(), batch(13, 3, 1, 6, 7)
    other = batch(6, 2, 2)
    with packed(packing_of(inputs)) as layout:
        assert torch.equal(last_logits(model, other), last_logits(model, other))
        kept = {**tokens(inputs), "position_ids": torch.arange(13).expand(5, 13)}
        candidate_logits(model, kept, inputs["attention_mask"].sum(-1) - 1, CANDIDATES)
    assert layout is not None and not layout.served


@pytest.mark.parametrize(
    "trains",
    ["everything", "adapters", "stacked adapters", "upper adapters", "stacked upper adapters"],
)
def test_a_run_with_and_without_padding(trains, tmp_path):
    def run(padding_free: str) -> tuple[ZOTrainer, list[torch.Tensor]]:
        model = tiny_llama()
        if trains != "everything":
            layers = "last:1" if "upper" in trains else None
            add_tt_adapters(
                model, TTAdapterConfig(rank=2, bottleneck=8, init="paper", layers=layers)
            )
        trainer = trainer_of(
            model, tmp_path / padding_free, padding_free=padding_free,
            probes_per_forward="4" if "stacked" in trains else "1",
            perturbation="streamed" if trains == "everything" else "auto",
        )  # fmt: skip
        trainer.train()
        return trainer, [p.detach() for p in model.parameters() if p.requires_grad]

    padded, expected = run("false")
    free, found = run("auto")
    start = list(tiny_llama().parameters())
    assert [t.zo_optimizer.estimator.findings.packs for t in (padded, free)] == [None, True]
    assert padded.evaluations == free.evaluations
    shared = "upper" in trains
    assert all((trainer.batch_losses.trunk.depth > 0) == shared for trainer in (padded, free))
    if trains == "everything":
        assert not torch.equal(expected[0], start[0])
    asked, same = run("true")
    assert all(map(torch.equal, found, same)) and asked.evaluations == free.evaluations
    for one, other in zip(expected, found, strict=True):
        # Losses differ by about 1e-7, projected gradients by that over 2 eps, times lr.
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps_to_checkpoint", [2, 3])
def test_a_resumed_run_takes_the_finding_over(steps_to_checkpoint, tmp_path, monkeypatch):
    saving = {"save_strategy": "steps", "save_steps": steps_to_checkpoint}
    whole = trainer_of(tiny_llama(), tmp_path / "whole", **saving)
    whole.train()
    first = trainer_of(tiny_llama(), tmp_path / "parts", **saving)
    crash_after(first, 2)
    tried = Mock()
    monkeypatch.setattr("adazeta.forward.packing._objection", tried)
    second = trainer_of(tiny_llama(), tmp_path / "parts", **saving)
    second.train(resume_from_checkpoint=True)
    assert second.zo_optimizer.estimator.findings.packs is True and not tried.called
    assert all(map(torch.equal, second.model.parameters(), whole.model.parameters()))
    logs = [(tmp_path / name / LOG_NAME).read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


UNPACKABLE = {
    # One sees in both directions, the other masks by rows whatever the positions.
    "masked": (lambda b: last_logits(tiny_bert_mlm(), b).mean(-1), "texts in one row apart"),
    "by rows": (lambda b: last_logits(tiny_opt(), b).mean(-1), "texts in one row apart"),
    "own logits": (lambda b: torch.zeros(5), "computes its logits itself"),
    "one loss": (lambda b: last_logits(tiny_llama(), b).mean(), "this loss is of a batch"),
}


@pytest.mark.parametrize("case", UNPACKABLE)
def test_what_cannot_be_packed_is_refused_or_stays_as_it_is(case, caplog):
    losses, reason = UNPACKABLE[case]
    inputs = batch(13, 3, 1, 6, 7)
    with pytest.raises(ValueError, match=f"{reason}.*; set padding_free='auto' or 'false'"):
        choose_packing(True, losses, inputs, float32, None)
    with caplog.at_level("INFO", logger="adazeta.forward.packing"):
        assert choose_packing("auto", losses, inputs, float32, None) == (None, False)
    assert reason in caplog.text


def test_what_is_known_is_not_tried_again():
    inputs, even = batch(13, 3, 1, 6, 7), batch(4, 4)

    def never(*args):
        raise AssertionError("called")

    assert choose_packing(False, never, inputs, never, None) == (None, None)
    assert choose_packing("auto", never, inputs, never, False) == (None, False)
    assert choose_packing("auto", never, even, never, None) == (None, None)
    packing, known = choose_packing("auto", never, inputs, never, True)
    assert packing is not None and known


def test_padding_free_with_what_needs_single_examples():
    settings = {"output_dir": "unused", "use_cpu": True}
    for conflict in ({"probes": "example"}, {"probes": "2"}, {"cache_trunk": "memory"}):
        assert ZOTrainingArguments(**settings, **conflict).padding_mode() is False
    assert ZOTrainingArguments(**settings).padding_mode() == "auto"
    assert ZOTrainingArguments(**settings, padding_free=False).padding_mode() is False
    assert ZOTrainingArguments(**settings, padding_free=True).padding_mode() is True
    with pytest.raises(ValueError, match="use probes='batch', not 'example'"):
        ZOTrainingArguments(**settings, padding_free="true", probes="example")
    with pytest.raises(ValueError, match="cache_trunk='memory' keeps the states of single"):
        ZOTrainingArguments(**settings, padding_free=True, cache_trunk="memory")
    with pytest.raises(ValueError, match="padding_free must be .* got 'yes'"):
        ZOTrainingArguments(**settings, padding_free="yes")
