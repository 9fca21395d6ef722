import json

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import EvalPrediction

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.estimation.findings import Findings
from adazeta.forward.batch_losses import BatchLosses
from adazeta.forward.candidates import score_losses
from adazeta.forward.packing import packed, packing_of
from adazeta.forward.trained_loss import TrainedLoss
from adazeta.parameters.space import ParameterSpace
from adazeta.support.batches import repeat_rows
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.choices import ChoiceTask
from adazeta.tasks.phrases import PhraseTask
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.registry import make_task, task_from_dict
from tests.helpers.tiny_models import (
    CAUSAL,
    tiny_bart,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_tokenizer,
)

WORDS = {"neg": "terrible film", "pos": "great", "mixed": "not very good"}
RECORDS = [
    {"text": "the movie was wonderful", "label": "pos"},
    {"text": "a bad film", "label": "neg"},
    {"text": "the acting is really very dull and the story boring", "label": "mixed"},
]
CHOICES = [
    {"text": "the dog", "options": ["was in the house", "is a tree", "and"], "label": 1},
    {"text": "the cat and the river", "options": ["was very good", "is red"], "label": "is red"},
]


def phrases(**options):
    return PhraseTask(tiny_tokenizer(), "{text} it was", WORDS, **options)


def plain_scores(model, prompt, candidates):
    """Scores one candidate after another, without padding and from all logits."""
    scores = []
    for tokens in candidates:
        ids = torch.tensor([prompt + tokens])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        likelihoods = logits.float().log_softmax(-1)
        scores.append(likelihoods[torch.arange(len(tokens)), torch.tensor(tokens)].mean())
    return torch.stack(scores)


@pytest.mark.parametrize("build", CAUSAL)
@torch.no_grad()
def test_a_score_is_the_mean_log_likelihood_of_the_candidate(build):
    model, task = build(), phrases()
    examples = [task.encode(record) for record in RECORDS]
    losses, scores = task.losses(model, task.collate(examples))
    expected = torch.stack([plain_scores(model, e["input_ids"], task.candidates) for e in examples])
    # The same products, summed in batches of other shapes.
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    labels = torch.tensor([e["labels"] for e in examples])
    torch.testing.assert_close(
        losses, functional.cross_entropy(expected, labels, reduction="none"), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("build", [tiny_t5, tiny_bart])
@torch.no_grad()
def test_a_decoder_scores_the_candidates_that_it_writes(build):
    model, task = build(), phrases(decoder=True)
    examples = [task.encode(record) for record in RECORDS]
    assert examples[0]["input_ids"][-1] == task.tokenizer.eos_token_id
    _, scores = task.losses(model, task.collate(examples))
    for row, example in zip(scores, examples, strict=True):
        for score, tokens in zip(row, task.candidates, strict=True):
            out = model(
                input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([tokens])
            )
            torch.testing.assert_close(score, -out.loss.float(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_words_of_one_token_give_the_probabilities_of_the_label_word_task():
    model, words = tiny_llama(), ["terrible", "great"]
    one = PromptTask(tiny_tokenizer(), "{text} it was", words, label_column="no")
    several = PhraseTask(tiny_tokenizer(), "{text} it was", words)
    examples = [{**one.encode_prompt(record), "labels": 0} for record in RECORDS]
    more = [{**several.encode_prompt(record), "labels": 0} for record in RECORDS]
    expected, found = (
        task.losses(model, task.collate(rows)) for task, rows in ((one, examples), (several, more))
    )
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1].softmax(-1), expected[1].softmax(-1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_all_candidates_of_a_batch_are_packed_without_padding():
    model, task = tiny_llama(), phrases()
    batch = task.collate([task.encode(record) for record in RECORDS])
    packing = packing_of(batch)
    assert packing.shape == (9, batch["input_ids"].shape[-1])
    places = packing.source.numel()
    assert places < batch["input_ids"].numel()
    plain, _ = task.losses(model, batch)
    for copies in (1, 3):
        many = {name: t.repeat(copies, *[1] * (t.dim() - 1)) for name, t in batch.items()}
        with packed(packing, copies) as layout:
            found, _ = task.losses(model, many)
        assert layout.served
        torch.testing.assert_close(found, plain.repeat(copies), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_run_finds_out_that_candidates_may_be_packed():
    model, task = tiny_llama(), phrases()
    batch = task.collate([task.encode(record) for record in RECORDS])
    losses, found = BatchLosses(model, TrainedLoss(task.losses, None, compare=False)), Findings()
    evaluate = losses.of(model, batch, found)
    assert found.packs is True
    torch.testing.assert_close(evaluate(batch), task.losses(model, batch)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_model_that_mixes_packed_texts_keeps_its_padding():
    model, task = tiny_llama(), phrases()
    batch = task.collate([task.encode(record) for record in RECORDS])
    forward = model.forward

    def mixing(input_ids=None, position_ids=None, **kwargs):
        kwargs.pop("attention_mask", None)  # one causal mask over the whole row
        places = torch.arange(input_ids.shape[1])[None].expand(input_ids.shape)
        mask = torch.ones_like(input_ids)
        return forward(input_ids=input_ids, position_ids=places, attention_mask=mask, **kwargs)

    model.forward = mixing
    losses, found = BatchLosses(model, TrainedLoss(task.losses, None, compare=False)), Findings()
    losses.of(model, batch, found)
    assert found.packs is False


@torch.no_grad()
def test_one_example_alone_cannot_tell_whether_candidates_may_be_packed():
    model, task = tiny_llama(), phrases()
    batch = task.collate([task.encode(RECORDS[1])])
    losses, found = BatchLosses(model, TrainedLoss(task.losses, None, compare=False)), Findings()
    losses.of(model, batch, found)
    assert found.packs is None


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
@torch.no_grad()
def test_directions_of_examples_in_one_forward_are_those_of_one_after_another(build):
    config = TTAdapterConfig(rank=2, bottleneck=8, init="paper")
    model, task = add_tt_adapters(build(), config), phrases(decoder=build is tiny_t5)
    space = ParameterSpace(model)
    batch = task.collate([task.encode(record) for record in RECORDS])
    seeds = list(range(6))  # two evaluations of three examples
    with space.stacked(torch.tensor(seeds), torch.full((6,), 0.1)):
        found, _ = task.losses(model, repeat_rows(batch, 2))
    for place, seed in enumerate(seeds):
        with space.perturbed(seed, 0.1):
            alone, _ = task.losses(model, batch)
        torch.testing.assert_close(found[place], alone[place % 3], atol=1e-5, rtol=1e-5)
    assert (found[:3] != found[3:]).all()


def test_label_words_of_several_tokens_need_no_flag():
    arguments = TaskArguments(template="{text} it was", label_words=WORDS)
    task = make_task(arguments, tiny_tokenizer())
    assert isinstance(task, PhraseTask)
    assert task.words == [" terrible film", " great", " not very good"]
    arguments = TaskArguments(template="{text} it was", label_words=["bad", "good"])
    assert isinstance(make_task(arguments, tiny_tokenizer()), PromptTask)


def test_a_word_that_the_tokenizer_does_not_know_is_still_refused():
    arguments = TaskArguments(template="{text} it was", label_words=["splendid", "good film"])
    with pytest.raises(ValueError, match="label word ' splendid' is not one token"):
        make_task(arguments, tiny_tokenizer())


def test_a_mask_is_one_token():
    arguments = TaskArguments(template="{text} it was {mask}", label_words=["bad", "good film"])
    with pytest.raises(ValueError, match="label word ' good film' is not one token"):
        make_task(arguments, tiny_tokenizer())
    with pytest.raises(ValueError, match="a mask is one token"):
        PhraseTask(tiny_tokenizer(), "{text} it was {mask}", ["bad", "good film"])


def test_adapters_on_the_last_token_need_words_of_one():
    arguments = TaskArguments(template="{text} it was", label_words=WORDS, adapt="last")
    with pytest.raises(ValueError, match="adapt='last' needs label words of one token.*'all'"):
        make_task(arguments, tiny_tokenizer())


def test_the_prompt_is_cut_so_that_the_longest_words_fit():
    task = phrases(max_length=12)
    example = task.encode({"text": "dog " * 40, "label": "pos"})
    batch = task.collate([example])
    assert batch["input_ids"].shape == (1, 3, 12)
    assert len(example["input_ids"]) == 9


@pytest.mark.parametrize("decoder", [False, True])
@torch.no_grad()
def test_choices_may_differ_in_number(decoder):
    model = tiny_t5() if decoder else tiny_gpt2()
    task = ChoiceTask(tiny_tokenizer(), "{text}", "options", decoder=decoder)
    examples = [task.encode(record) for record in CHOICES]
    assert [example["labels"] for example in examples] == [1, 1]
    losses, scores = task.losses(model, task.collate(examples))
    assert scores.shape == (2, 3) and scores[1, 2] == -torch.inf
    for index, example in enumerate(examples):
        alone = task.losses(model, task.collate([example]))
        count = len(example["candidates"])
        torch.testing.assert_close(alone[1][0], scores[index, :count], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone[0][0], losses[index], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_likelihood_objective_trains_the_right_candidate_alone():
    task = ChoiceTask(tiny_tokenizer(), "{text}", "options", objective="likelihood")
    model, examples = tiny_gpt2(), task.encode_training(CHOICES)
    assert [len(examples[index]["candidates"]) for index in range(2)] == [1, 1]
    trained, _ = task.losses(model, task.collate([examples[0], examples[1]]))
    whole = task.encode_all(CHOICES)
    evaluated, scores = task.losses(model, task.collate([whole[0], whole[1]]))
    torch.testing.assert_close(trained, evaluated, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trained, -scores[torch.arange(2), torch.tensor([1, 1])])
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1"):
        task.losses(model, task.collate([whole[0]]), label_smoothing=0.1)


def test_smoothing_spreads_over_the_candidates_that_exist():
    scores = torch.tensor([[0.3, -1.0, -torch.inf], [0.1, 0.2, 0.5]])
    labels = torch.tensor([0, 2])
    found = score_losses(scores, labels, 0.1)
    for row, (count, label) in enumerate([(2, 0), (3, 2)]):
        expected = functional.cross_entropy(
            scores[row : row + 1, :count], torch.tensor([label]), label_smoothing=0.1
        )
        torch.testing.assert_close(found[row], expected)


@torch.no_grad()
def test_any_right_candidate_counts_as_right():
    record = {"text": "the dog", "options": ["is red", "was a cat", "is blue"], "label": [0, 2]}
    task = ChoiceTask(tiny_tokenizer(), "{text}", "options")
    example = task.encode(record)
    assert example["labels"] == 0 and example["right"] == [0, 2]
    plain = ChoiceTask(tiny_tokenizer(), "{text}", "options").encode({**record, "label": 0})
    model = tiny_gpt2()
    _, scores = task.losses(model, task.collate([example]))
    _, each = task.losses(model, task.collate([plain]))
    assert scores[0, 0] == torch.maximum(each[0, 0], each[0, 2])
    assert scores[0, 2] == -torch.inf


def test_candidates_may_be_columns_and_a_part_of_what_follows():
    task = ChoiceTask(
        tiny_tokenizer(), "{text}", ["{a}", "{b}"], continuation="- the {candidate} is {c}"
    )
    record = {"text": "a story", "a": "dog", "b": "cat", "c": "red", "label": 1}
    example = task.encode(record)
    shown = [task.tokenizer.convert_ids_to_tokens(ids) for ids in example["candidates"]]
    assert shown == [["-", "the", "dog", "is", "red"], ["-", "the", "cat", "is", "red"]]
    assert task_from_dict(json.loads(json.dumps(task.to_dict())), task.tokenizer).to_dict() == (
        task.to_dict()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": "no list"}, "must be a list of two candidates"),
        ({"options": ["one"]}, "must be a list of two candidates"),
        ({"label": 3}, "neither the number"),
        ({"label": None}, "neither the number"),
        ({"options": ["1", "0"], "label": "1"}, "may be the number of another"),
        ({"options": ["", "is red"]}, "must be a list"),
    ],
)
def test_choices_that_cannot_be_read_are_refused(change, message):
    task = ChoiceTask(tiny_tokenizer(), "{text}", "options")
    with pytest.raises(ValueError, match=message):
        task.encode({**CHOICES[0], **change})


def test_a_whole_number_is_the_place_of_a_candidate():
    task = ChoiceTask(tiny_tokenizer(), "{text}", "options")
    for label in (1, "1", "1.0", 1.0):
        assert task.encode({**CHOICES[0], "label": label})["labels"] == 1
    assert task.encode({"text": "a", "options": ["1", "0"], "label": 1})["labels"] == 1


def test_a_list_in_a_table_is_read_as_json():
    task = ChoiceTask(tiny_tokenizer(), "{text}", "options")
    example = task.encode({**CHOICES[1], "options": json.dumps(CHOICES[1]["options"])})
    assert example["labels"] == 1


def test_what_the_trainer_pads_with_is_no_score():
    predictions = np.array([[-120.0, -130.0, -100.0], [-1.0, -2.0, -0.5]])
    task = ChoiceTask(tiny_tokenizer(), "{text}", "options")
    found = task.metrics(EvalPrediction(predictions=predictions, label_ids=np.array([0, 2])))
    assert found == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set label_words"),
        ({"label_words": ["a", "b"], "completion": "{text}"}, "label_words and completion are set"),
        ({"label_words": ["bad", "good"], "objective": "likelihood"}, "objective='likelihood'"),
        ({"label_words": ["bad", "good"], "references": "x"}, "references='x'"),
        ({"label_words": ["bad", "good"], "stop": ["."]}, "stop="),
        ({"choices": "options", "metrics": ["f1"]}, "metrics="),
        ({"completion": "{text}", "metrics": ["f1"]}, "metrics="),
        ({"classes": [0, 1], "shots": 2}, "shots=2"),
        ({"choices": "options", "adapt": "last"}, "adapt='last'"),
        ({"label_words": ["bad", "good"], "metrics": ["rouge"]}, "got 'rouge'"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(options, message):
    arguments = TaskArguments(template="{text} it was", **options)
    with pytest.raises(ValueError, match=message):
        make_task(arguments, tiny_tokenizer())
