import json

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.label_words import Labels
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import Records
from adazeta.tasks.registry import task_from_dict
from tests.helpers.tiny_models import tiny_tokenizer

# Bigrams of each pair of words keep the words themselves apart.
CORPUS = ["好", "差", "良い", "悪い", "ดี", "แย่", "great", "bad", "It was", "\n"] * 20
CORPUS += ["：好 ：差", "很好 很差", "It was great bad", "(great"]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "was great", "was bad"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def pieces(*extra: str, masked: bool) -> PreTrainedTokenizerFast:
    """As XLM-R with a mask (a space before every part), as Llama 2 without."""
    tokens = ["<unk>", "<s>", "</s>", "<mask>", "▁"]
    tokens += [*extra, "好", "差", "良い", "悪い", "ดี", "แย่", "▁great", "▁bad", "great", "bad"]
    tokens += sorted({c for text in CORPUS for c in text} | set("I:：很。電影หนง\n") - set(tokens))
    vocabulary = [(token, -10.0 + len(token)) for token in dict.fromkeys(tokens)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="always" if masked else "first"
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if masked else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"},
    )


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT: Chinese letters are words, other words continue with ##."""
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "was", "great", "bad", "很", "好", "差"]
    tokens += [".", "。", "น", "##ดี", "##แย่", "ดี", "แย่"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"unk_token": "[UNK]", "mask_token": "[MASK]", "sep_token": "[SEP]"},
    )


@pytest.mark.parametrize(
    ("tokenizer", "template", "words", "tokens"),
    [
        (byte_level(), "{text}\n評価：", ["差", "好"], None),
        (byte_level(), "{text}\n", ["悪い", "良い"], None),
        (byte_level(), "{text} It was", ["bad", "great"], ["Ġbad", "Ġgreat"]),
        (pieces(masked=False), "{text}\n情感：", ["差", "好"], ["差", "好"]),
        (pieces(masked=False), "{text}หนัง", ["แย่", "ดี"], ["แย่", "ดี"]),
        (pieces(masked=False), "{text}:", ["悪い", "良い"], ["悪い", "良い"]),
        (pieces(masked=False), "{text} It was", ["bad", "great"], ["▁bad", "▁great"]),
        (pieces(masked=False), "{text} 情感：", ["bad", "great"], ["bad", "great"]),
        (pieces(masked=True), "{text}很{mask}。", ["差", "好"], ["差", "好"]),
        (pieces(masked=True), "{text}電影{mask}。", ["悪い", "良い"], ["悪い", "良い"]),
        (word_pieces(), "{text}很{mask}。", ["差", "好"], ["差", "好"]),
        (word_pieces(), "{text} น{mask}", ["แย่", "ดี"], ["##แย่", "##ดี"]),
        (word_pieces(), "{text} it was {mask} .", ["bad", "great"], ["bad", "great"]),
    ],
)
def test_words_of_scripts_without_spaces_follow_directly(tokenizer, template, words, tokens):
    task = PromptTask(tokenizer, template, words)
    spaced = tokens is not None and template.endswith(("was", "was {mask} ."))
    assert task.words == [f" {word}" if spaced else word for word in words]
    if tokens is not None:
        assert tokenizer.convert_ids_to_tokens(task.candidates.tolist()) == tokens
    described = json.loads(json.dumps(task.to_dict(), ensure_ascii=False))
    again = task_from_dict(described, tokenizer)
    assert again.to_dict() == described
    assert again.candidates.tolist() == task.candidates.tolist()


def test_a_space_is_put_where_it_alone_makes_one_token_and_the_saved_task_has_it():
    tokenizer = pieces("▁優", masked=False)
    task = PromptTask(tokenizer, "{text}：", ["優", "差"])
    assert task.words == [" 優", "差"]
    assert tokenizer.convert_ids_to_tokens(task.candidates.tolist()) == ["▁優", "差"]
    again = task_from_dict(task.to_dict(), tokenizer)
    assert again.words == task.words and again.candidates.equal(task.candidates)


@pytest.mark.parametrize(
    ("template", "word", "remedy"),
    [
        ("{text} It was", "splendid", "or end the template in a line break"),
        ("{text}：", "映画", "or end the template in a line break"),
        ("{text}\n", "映画", "choose a word that the tokenizer has as one token$"),
    ],
)
def test_the_remedy_for_a_word_of_several_tokens_fits_its_place(template, word, remedy):
    with pytest.raises(ValueError, match=f"is not one token of its own after .*{remedy}"):
        PromptTask(byte_level(), template, ["差" if ord(word[0]) > 999 else "bad", word])


@pytest.mark.parametrize(
    ("keys", "value", "index"),
    [
        ([0, 1], "1", 1),
        ([0, 1], 1.0, 1),
        ([0, 1], "1.00", 1),
        ([0.0, 1.0], "1", 1),
        ([0, 1], np.float32(1), 1),
        ([0, 1], np.int64(1), 1),
        ([1, -1], "-1.0", 1),
        ([False, True], "true", 1),
        ([False, True], "TRUE", 1),
        (["false", "true"], True, 1),
        (["no", "yes"], " yes ", 1),
        ([" not bad", "very good"], "not bad", 0),
        (["1", "01"], "01", 1),
        (["1.5", "2.5"], 2.5, 1),
        (["None", "nan"], "nan", 1),
    ],
)
def test_one_label_is_written_in_many_ways(keys, value, index):
    assert Labels(keys).index(value) == index
    assert value in Labels(keys)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ([0, 1], None, r"the label is missing \(None\); fill it in"),
        ([0, 1], float("nan"), r"the label is missing \(nan\)"),
        ([0, 1], np.float64("nan"), "the label is missing"),
        (["None", "nan"], None, "the label is missing"),
        ([0, 1], "  ", "the label is missing"),
        ([0, 1], "NA", "unknown label 'NA'"),
        ([0, 1], -1, "unknown label '-1'.*-1 marks examples without a label"),
        ([0, 1], 0.5, "unknown label '0.5'"),
        ([0, 1], True, "unknown label 'True'"),
        ([0, 1], "01", "unknown label '01'.*compared as text"),
        (["01", "02"], 1, "unknown label '1'.*in quotes"),
        ([True, False], "yes", "unknown label 'yes'.*in quotes: 'yes' is text"),
        ([True, False], "off", "in quotes"),
    ],
)
def test_a_label_that_is_none_of_the_task_s_says_why(keys, value, message):
    with pytest.raises(ValueError, match=message):
        Labels(keys).index(value)


@pytest.mark.parametrize(
    "keys", [[1, "1"], ["1", "1.0"], ["a", " a"], [True, "true"], ["0", "-0.0"], ["yes", "yes "]]
)
def test_two_ways_to_write_one_label_are_refused(keys):
    with pytest.raises(ValueError, match="are compared as text and are the same"):
        Labels(keys)


@pytest.mark.parametrize("key", [None, float("nan"), "", " "])
def test_a_label_that_is_missing_is_refused(key):
    with pytest.raises(ValueError, match="labels are texts or numbers"):
        Labels([key, 1])


def test_a_list_of_words_for_labels_that_are_text_says_to_write_a_mapping():
    task = PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"])
    with pytest.raises(ValueError, match=r"give a mapping .* \{positive: ...\}"):
        task.encode({"text": "a film", "label": "positive"})


@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [
        (["neg", "pos"], {"pos": "great", "neg": "terrible"}, [1, 0]),
        (["neg", "pos"], {0: "terrible", 1: "great"}, [0, 1]),
        (["1", "2", "3"], {1: "terrible", 2: "bad", 3: "great"}, [0, 1]),
        (["1", "2", "3"], {0: "terrible", 1: "bad", 2: "great"}, [0, 1]),
        (["0", "1"], {1: "great", 0: "terrible"}, [1, 0]),
        (["no", "yes"], {"other": "bad", "no": "terrible", "yes": "great"}, [1, 2]),
    ],
)
def test_labels_are_the_numbers_of_classes_or_their_names(names, labels, classes):
    records = [{"text": "a film", "label": 0}, {"text": "a film", "label": 1}]
    records = Records(records, "hub/set (train)", names={"label": names})
    task = PromptTask(tiny_tokenizer(), "{text} it was", labels)
    assert task.encode_all(records).labels.tolist() == classes


def test_numbers_and_names_of_classes_that_contradict_are_refused():
    records = Records([{"text": "a", "label": 0}], "hub/set", names={"label": ["1", "0"]})
    task = PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"])
    with pytest.raises(ValueError, match="hub/set: .* both the numbers and the names"):
        task.encode_all(records)
    hidden = Records([{"text": "a", "label": -1}], "hub/set", names={"label": ["neg", "pos"]})
    task = PromptTask(tiny_tokenizer(), "{text} it was", {"neg": "terrible", "pos": "great"})
    with pytest.raises(ValueError, match="hub/set, example 0: unknown label '-1'.*hidden"):
        task.encode_all(hidden)


@pytest.mark.parametrize(
    ("prompt", "completion", "record", "expected"),
    [
        ("{p}", "{c}", {"p": "the movie was", "c": " great"}, "the movie was great"),
        ("", "{c}", {"c": "    return great\n"}, "    return great\n"),
        ("{p}", "{c}", {"p": "the movie was\n\n", "c": "great"}, "the movie was\n\ngreat"),
        ("{p}\t", "{c} \n", {"p": "\tx", "c": "\r\ny\r\n"}, "\tx\t\r\ny\r\n \n"),
        ("{p}", "{c}", {"p": "{c} {{mask}}", "c": "{p}"}, "{c} {{mask}}{p}"),
    ],
)
def test_white_space_and_braces_of_the_data_are_learnt_as_they_are(
    prompt, completion, record, expected
):
    tokenizer = byte_level()
    task = CausalLMTask(tokenizer, completion, prompt=prompt)
    ids = task.encode(record)["input_ids"]
    assert tokenizer.decode(ids[:-1]) == expected
    assert ids[-1] == tokenizer.eos_token_id


def test_a_completion_has_no_space_that_the_tokenizer_puts_before_texts():
    tokenizer = pieces(masked=False)
    task = CausalLMTask(tokenizer, "{c}", prompt="{p}\n")
    for text, tokens in (("great", ["great"]), (" great", ["▁great"])):
        example = task.encode({"p": "It was", "c": text})
        learnt = [token for token in example["labels"] if token != -100]
        assert tokenizer.convert_ids_to_tokens(learnt) == [*tokens, "</s>"]


def test_tasks_saved_by_versions_that_stripped_go_on_to_strip():
    described = {"type": "causal_lm", "prompt": "{p}", "completion": "{c}", "max_length": None}
    tokenizer = byte_level()
    record = {"p": "It was ", "c": " great\n"}
    task = task_from_dict(described, tokenizer)
    assert tokenizer.decode(task.encode(record)["input_ids"][:-1]) == "It wasgreat"
    assert task_from_dict(task.to_dict(), tokenizer).to_dict() == task.to_dict()
    assert not CausalLMTask(tokenizer, "{c}").to_dict()["strip"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "holds None, which is no text: the value is missing"),
        (float("nan"), "holds nan, which is no text: the value is missing"),
        (float("inf"), "holds inf, which is no text"),
        (True, "holds True, which is no text; write it as text, in quotes"),
        ("a\ud83d film", "half of a pair"),
        ("\udcff", "half of a pair"),
        (b"film", "which is no text"),
    ],
)
def test_values_that_are_no_text_are_refused(value, message):
    for task, column in (
        (PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"]), "text"),
        (CausalLMTask(tiny_tokenizer(), "{text}"), "text"),
        (CausalLMTask(tiny_tokenizer(), "yes {a}", prompt="{text}"), "text"),
    ):
        with pytest.raises(ValueError, match=f"record 0: column '{column}' .*{message}"):
            task.encode_all([{column: value, "a": "x", "label": 0}])


def test_an_empty_completion_is_refused():
    with pytest.raises(ValueError, match="record 1: the completion .* is empty"):
        CausalLMTask(tiny_tokenizer(), "{text}").encode_all([{"text": "a film"}, {"text": ""}])
