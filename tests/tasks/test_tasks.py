import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import EvalPrediction, PreTrainedTokenizerFast

from adazeta.forward.losses import example_losses
from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import Records, load_records
from adazeta.tasks.registry import task_from_dict
from adazeta.tasks.template import Template
from tests.helpers.tiny_models import (
    EOS,
    MASK,
    PAD,
    VOCABULARY,
    tiny_bert_mlm,
    tiny_llama,
    tiny_tokenizer,
)

WORDS = {0: "terrible", 1: "great"}
RECORDS = [
    {"text": "the movie was wonderful", "label": 1},
    {"text": "a bad film", "label": 0},
    {"text": "the acting is really very dull and the story boring", "label": 0},
]


def token(word: str) -> int:
    return VOCABULARY.index(word)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Like GPT-2's: a space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["It was great", "It was terrible", "Answer: Yes\nYes\nNo", "Answer: No", "(great"] * 20
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>"
    )


def test_a_causal_prompt_ends_where_the_label_word_follows():
    task = PromptTask(tiny_tokenizer(), "{text} it was", WORDS)
    example = task.encode(RECORDS[1])
    assert task.tokenizer.convert_ids_to_tokens(example["input_ids"]) == (
        ["<s>", "a", "bad", "film", "it", "was"]
    )
    assert example["labels"] == 0
    assert task.candidates.tolist() == [token("terrible"), token("great")]


def test_a_masked_prompt_keeps_the_special_tokens_on_both_sides():
    task = PromptTask(tiny_tokenizer(), "{text} it was {mask} .", WORDS)
    batch = task.collate([task.encode(record) for record in RECORDS])
    assert batch["input_ids"][1].tolist()[:9] == (
        [1, token("a"), token("bad"), token("film"), token("it"), token("was"), MASK, token("."), 2]
    )
    rows = torch.arange(3)
    assert (batch["input_ids"][rows, batch["positions"]] == MASK).all()


def test_batches_are_padded_on_the_right():
    task = PromptTask(tiny_tokenizer(), "{text} it was", WORDS)
    batch = task.collate([task.encode(record) for record in RECORDS])
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "input_ids": (3, 13),
        "attention_mask": (3, 13),
        "labels": (3,),
        "positions": (3,),
    }
    lengths = batch["attention_mask"].sum(-1)
    assert torch.equal(batch["positions"], lengths - 1)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()
    last = batch["input_ids"][torch.arange(3), batch["positions"]]
    assert (last == token("was")).all()


def test_training_batches_let_the_labels_take_turns():
    task = PromptTask(tiny_tokenizer(), "{text} it was", WORDS)
    words = ["red", "green", "blue", "cat", "dog"]
    labels = [1, 1, 0, 1, 0]
    records = [{"text": w, "label": label} for w, label in zip(words, labels, strict=True)]
    examples = [task.encode(record) for record in records]
    mixed = task.collate_mixed(examples)
    assert mixed["labels"].tolist() == [0, 1, 0, 1, 1]
    first = [token(word) for word in ("blue", "red", "dog", "green", "cat")]
    assert mixed["input_ids"][:, 1].tolist() == first
    assert task.collate(examples)["labels"].tolist() == labels


def test_a_tokenizer_without_padding_pads_with_the_end_token():
    tokenizer = byte_level_tokenizer()
    task = PromptTask(tokenizer, "{text} It was", WORDS)
    batch = task.collate([task.encode(record) for record in RECORDS])
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.eos_token_id).all()


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        ("{text} It was", ["terrible", "great"], [" terrible", " great"]),
        ("{text} It was", [" terrible", " great"], [" terrible", " great"]),
        ("{text} It was ", ["terrible", "great"], [" terrible", " great"]),
        ("{text} It was {mask}.", ["terrible", "great"], [" terrible", " great"]),
        ("{text}\nAnswer: Yes\n", ["Yes", "No"], ["Yes", "No"]),
        ("{text} (", ["great", " terrible"], ["great", " terrible"]),
    ],
)
def test_the_space_before_a_label_word_is_handled(template, words, expected):
    tokenizer = byte_level_tokenizer()
    task = PromptTask(tokenizer, template, words)
    assert task.words == expected
    assert [tokenizer.decode([token]) for token in task.candidates.tolist()] == expected


@pytest.mark.parametrize("template", ["{text} it was", "{text} it was {mask} ."])
@pytest.mark.parametrize("word", ["great film", "splendid"])
def test_a_label_word_of_several_or_unknown_tokens_is_refused(template, word):
    with pytest.raises(ValueError, match=f"label word ' {word}' is not one token.*it is '"):
        PromptTask(tiny_tokenizer(), template, {0: "terrible", 1: word})


def test_label_words_that_share_a_token_are_refused():
    with pytest.raises(ValueError, match="are the same token 'great'"):
        PromptTask(tiny_tokenizer(), "{text} it was", ["great", " great"])


def test_a_boolean_label_word_is_refused_with_the_reason():
    with pytest.raises(TypeError, match="put words such as yes"):
        PromptTask(tiny_tokenizer(), "{text}", {0: False, 1: True})


def test_one_label_word_is_refused():
    with pytest.raises(ValueError, match="two or more label words"):
        PromptTask(tiny_tokenizer(), "{text}", ["great"])


def test_labels_are_compared_as_text():
    task = PromptTask(tiny_tokenizer(), "{text} it was", {"neg": "bad", 1: "good"})
    assert task.encode({"text": "a film", "label": "1"})["labels"] == 1
    assert task.encode({"text": "a film", "label": " neg"})["labels"] == 0
    with pytest.raises(ValueError, match=r"unknown label '0'; .*\['neg', '1'\]"):
        task.encode({"text": "a film", "label": 0})


@given(st.integers(6, 40), st.integers(0, 60), st.integers(0, 60))
def test_long_texts_are_cut_but_never_the_template(max_length, first, second):
    task = PromptTask(tiny_tokenizer(), "{a} ? {b} it was", WORDS, max_length=max_length)
    record = {"a": "dog " * first, "b": "cat " * second, "label": 0}
    ids = task.encode(record)["input_ids"]
    words = task.tokenizer.convert_ids_to_tokens(ids)
    assert len(ids) <= max_length
    assert words[0] == "<s>" and words[-2:] == ["it", "was"] and "?" in words
    whole = first + second + 4
    # Cutting inside a word costs at most one token a column.
    assert len(ids) >= min(whole, max_length - 2)


def test_the_limit_of_the_tokenizer_holds_whatever_is_asked_for():
    tokenizer = tiny_tokenizer()
    for wanted, limit in ((None, 128), (512, 128), (50, 50)):
        task = PromptTask(tokenizer, "{text} it was", WORDS, max_length=wanted)
        assert task.max_length == limit
        assert len(task.encode({"text": "dog " * 300, "label": 0})["input_ids"]) == limit
    tokenizer.model_max_length = 10**30
    assert PromptTask(tokenizer, "{text} it was", WORDS).max_length is None


def test_a_template_longer_than_the_limit_is_refused():
    task = PromptTask(tiny_tokenizer(), "{text} it was", WORDS, max_length=2)
    with pytest.raises(ValueError, match="raise max_length"):
        task.encode(RECORDS[0])


@pytest.mark.parametrize("text", ["{", "{}", "{text!r}", "{text:>3}", "a } b", "{mask} {mask}"])
def test_a_malformed_template_is_refused(text):
    with pytest.raises(ValueError, match="template"):
        Template(text, tiny_tokenizer())


def test_doubled_braces_are_literal():
    template = Template("{{x}} {a b}", tiny_tokenizer())
    assert template.render({"a b": "y"}) == "{x} y"


def test_a_mask_without_a_mask_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        PromptTask(tokenizer, "{text} {mask}", WORDS)


@pytest.mark.parametrize("value", [None, ["a", "film"], {"a": 1}])
def test_a_column_that_is_no_text_is_refused(value):
    task = PromptTask(tiny_tokenizer(), "{text} it was", WORDS)
    with pytest.raises(ValueError, match="column 'text' holds .* which is no text"):
        task.encode({"text": value, "label": 0})
    assert task.encode({"text": 5, "label": 0})["labels"] == 0


def test_a_completion_without_a_column_is_refused():
    with pytest.raises(ValueError, match="completion 'yes' has no column"):
        CausalLMTask(tiny_tokenizer(), "yes", prompt="{text}")


def test_a_mask_token_in_the_text_is_not_the_template_s():
    task = PromptTask(tiny_tokenizer(), "{text} it was {mask}", WORDS)
    ids = task.encode({"text": "a <mask> film", "label": 0})["input_ids"]
    assert ids.count(MASK) == 1


@pytest.mark.parametrize(
    ("build", "template"),
    [(tiny_llama, "{text} it was"), (tiny_bert_mlm, "{text} it was {mask} .")],
)
def test_losses_are_those_of_single_unpadded_examples(build, template):
    model = build()
    task = PromptTask(tiny_tokenizer(), template, WORDS)
    examples = [task.encode(record) for record in RECORDS]
    losses, logits = task.losses(model, task.collate(examples))
    assert losses.dtype == torch.float32
    for row, example in enumerate(examples):
        ids = torch.tensor([example["input_ids"]])
        at = ids[0].tolist().index(MASK) if "{mask}" in template else -1
        expected = model(input_ids=ids).logits[0, at, task.candidates]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)
        loss = functional.cross_entropy(expected[None], torch.tensor([example["labels"]]))
        torch.testing.assert_close(losses[row], loss, atol=1e-5, rtol=1e-5)


def test_accuracy():
    task = PromptTask(tiny_tokenizer(), "{text} it was", WORDS)
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]).numpy()
    prediction = EvalPrediction(predictions=logits, label_ids=torch.tensor([1, 0, 0, 0]).numpy())
    assert task.metrics(prediction) == {"accuracy": 0.75}


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), byte_level_tokenizer()])
def test_a_task_survives_json(tokenizer):
    tasks = [
        PromptTask(tokenizer, "{text} It was", {"neg": "terrible", "pos": "great"}, max_length=9)
        if tokenizer.pad_token is None
        else PromptTask(tokenizer, "{text} it was", {"neg": "terrible", "pos": "great"}),
        CausalLMTask(tokenizer, "{answer}", prompt="{text} ?", max_length=20),
    ]
    for task in tasks:
        described = json.loads(json.dumps(task.to_dict()))
        assert task_from_dict(described, tokenizer).to_dict() == task.to_dict()
    with pytest.raises(ValueError, match="unknown task type 'other'"):
        task_from_dict({"type": "other"}, tokenizer)


def test_completions_carry_the_loss_and_prompts_do_not():
    task = CausalLMTask(tiny_tokenizer(), "{answer}", prompt="{question} ?")
    example = task.encode({"question": "is it good", "answer": "yes it is"})
    answer = [token("yes"), token("it"), token("is"), EOS]
    assert example["input_ids"] == [1, token("is"), token("it"), token("good"), token("?"), *answer]
    assert example["labels"] == [-100] * 5 + answer


def test_language_modelling_losses_and_perplexity():
    model = tiny_llama()
    task = CausalLMTask(tiny_tokenizer(), "{text}")
    batch = task.collate([task.encode(record) for record in RECORDS])
    losses, outputs = task.losses(model, batch)
    expected, _ = example_losses(
        model, {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
    )
    assert torch.equal(losses, expected)
    prediction = EvalPrediction(predictions=outputs.detach().numpy(), label_ids=None)
    perplexity = task.metrics(prediction)["perplexity"]
    assert perplexity == pytest.approx(losses.mean().exp().item(), rel=1e-5)


@pytest.mark.parametrize("max_length", [6, 8, 12])
def test_language_modelling_keeps_to_the_limit(max_length):
    task = CausalLMTask(tiny_tokenizer(), "{b}", prompt="{a} ?", max_length=max_length)
    example = task.encode({"a": "dog " * 30, "b": "cat " * 3})
    assert len(example["input_ids"]) == len(example["labels"]) <= max_length
    assert example["labels"][-4:] == [token("cat")] * 3 + [EOS]
    example = task.encode({"a": "dog " * 30, "b": "cat " * 30})
    assert len(example["input_ids"]) <= max_length


def test_records_from_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 1}\n\n{"text": "y", "label": 0}\n')
    (tmp_path / "a.csv").write_text('\ufefftext,label\n"x, ""z""\nw",1\ny,0\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\tlabel\nx, w\t1\n")
    assert list(load_records(tmp_path / "a.jsonl")) == [
        {"text": "x", "label": 1},
        {"text": "y", "label": 0},
    ]
    assert list(load_records(tmp_path / "a.csv")) == [
        {"text": 'x, "z"\nw', "label": "1"},
        {"text": "y", "label": "0"},
    ]
    assert list(load_records(tmp_path / "a.tsv")) == [{"text": "x, w", "label": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', r"a.jsonl, line 2: expected an object .* got '\[1\]'"),
        ("a.csv", "text,label\nx,1\ny\n", "a.csv, line 3: 1 fields, but the first line names 2"),
        ("a.csv", 'text,label\n"x,1\n', "a.csv, line 2: "),
        ("a.csv", "text,label,text\nx,1,y\n", "line 1: two columns are named 'text'"),
        ("a.csv", b"text,label\nsch\xf6n,1\n", "a.csv, line 2: not UTF-8.*save the file"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xf6"}\n', "a.jsonl, line 2: not UTF-8"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not valid JSON"),
        ("a.jsonl", '{"text": "a film", "la', "a.jsonl, line 1: not valid JSON"),
        ("a.csv", "text,label\n", "holds no examples"),
        ("a.jsonl", "\n", "holds no examples"),
        ("a.txt", "x", "not a .jsonl, .csv or .tsv file"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path / name)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    assert list(load_records(tmp_path / "a.jsonl")) == [{"text": "x"}]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv"):
        load_records(tmp_path / "none.csv")


def test_the_hub_needs_datasets(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install adazeta\[data\]"):
        load_records("owner/name")


def test_bad_records_are_named_by_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a film", "label": 1}\n\n{"text": "a film", "label": 7}\n')
    task = PromptTask(tiny_tokenizer(), "{text} it was", WORDS)
    with pytest.raises(ValueError, match="a.jsonl, line 3: unknown label '7'"):
        task.encode_all(load_records(path))
    path.write_text('{"text": "a film"}\n')
    with pytest.raises(ValueError, match="a.jsonl, line 1: no column 'label' for the label"):
        task.encode_all(load_records(path))
    path.write_text('{"sentence": "a film", "label": 1}\n')
    with pytest.raises(ValueError, match="line 1: no column 'text', .* 'sentence', 'label'"):
        task.encode_all(load_records(path))
    with pytest.raises(ValueError, match=r"hub/set \(test\), example 0: no column"):
        task.encode_all(Records([{}], "hub/set (test)"))
    with pytest.raises(ValueError, match="record 0: no column"):
        task.encode_all([{}])
