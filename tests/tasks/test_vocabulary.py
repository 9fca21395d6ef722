import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from adazeta.cli import main
from adazeta.tasks.vocabulary import check_tokens, rows_in, settle_padding
from tests.helpers.commands import TEXTS, fails, settings
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_llama, tiny_tokenizer

ROWS = len(tiny_tokenizer())


def write(folder: Path, tokenizer, texts=TEXTS, *, model=None, **changes) -> Path:
    """Write a model whose embedding has just the rows of the plain tokenizer, and a run for it."""
    if model is None:
        model = LlamaForCausalLM(tiny_llama().config)
        model.resize_token_embeddings(ROWS)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [json.dumps({"text": text, "label": label}) for text, label in texts * 4]
    (folder / "data.jsonl").write_text("\n".join(rows))
    values = {**settings(folder), "max_steps": 2, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


def test_a_padding_token_without_a_row_is_replaced(tmp_path: Path, caplog) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == ROWS
    with caplog.at_level(logging.WARNING):
        assert main(["train", str(write(tmp_path, tokenizer))]) == 0
    assert "'[PAD]' has the id" in caplog.text and "'</s>' pads instead" in caplog.text
    loss = json.loads((tmp_path / "out" / "all_results.json").read_text())["validation_loss"]
    # The same run with a tokenizer whose padding token always was that one: the same numbers.
    plain = tiny_tokenizer()
    plain.pad_token = "</s>"
    other = tmp_path / "other"
    torch.manual_seed(0)
    write(other, plain, model=LlamaForCausalLM.from_pretrained(tmp_path / "base"))
    assert main(["train", str(other / "config.yaml")]) == 0
    again = json.loads((other / "out" / "all_results.json").read_text())["validation_loss"]
    assert loss == again
    assert main(["eval", str(tmp_path / "out"), "--data", str(tmp_path / "data.jsonl")]) == 0


def test_the_last_resort_for_padding_is_token_0() -> None:
    tokenizer = tiny_tokenizer()
    for name in ("eos_token", "bos_token", "unk_token", "pad_token"):
        setattr(tokenizer, name, "[PAD]")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    settle_padding(tokenizer, ROWS)
    assert tokenizer.pad_token_id == 0


def test_padding_that_has_a_row_stays() -> None:
    tokenizer = tiny_tokenizer()
    settle_padding(tokenizer, ROWS)
    assert tokenizer.pad_token == "<pad>"
    tokenizer.pad_token = None
    settle_padding(tokenizer, ROWS)
    assert tokenizer.pad_token is None


def test_an_added_token_in_a_text_is_named(tmp_path: Path, capsys) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<user>"], special_tokens=True)
    config = write(tmp_path, tokenizer, [*TEXTS, ("<user> good film", 1)])
    capsys.readouterr()  # the progress of writing the model
    line = fails(capsys, "train", config)
    assert "example 4 has the token '<user>' with the id" in line
    assert "resize_token_embeddings" in line
    # Where no text has it, it does no harm.
    assert main(["train", str(write(tmp_path, tokenizer))]) == 0
    capsys.readouterr()
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": "<user> good", "label": 1}))
    out, data = tmp_path / "out", tmp_path / "new.jsonl"
    for command in (["eval", out, "--data", data], ["predict", out, "<user> good"]):
        assert main([str(argument) for argument in command]) == 2
        assert "error: example 0 has the token" in capsys.readouterr().err


def test_an_added_label_word_is_named(tmp_path: Path, capsys) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["superb"])
    config = write(tmp_path, tokenizer, label_words={0: "terrible", 1: "superb"})
    capsys.readouterr()
    assert "a label word has the token 'superb'" in fails(capsys, "train", config)


def test_an_end_token_without_a_row_is_named(tmp_path: Path, capsys) -> None:
    tokenizer = tiny_tokenizer(add_special_tokens=False)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    config = write(tmp_path, tokenizer, completion="{text}", template="", label_words=None)
    capsys.readouterr()
    assert "the token '<|im_end|>'" in fails(capsys, "train", config)


def test_rows_are_those_of_the_embedding() -> None:
    model = tiny_llama()
    assert rows_in(model) == rows_in(model.config) == model.config.vocab_size
    assert rows_in(tiny_bert_mlm()) == tiny_bert_mlm().config.vocab_size
    assert rows_in(torch.nn.Linear(2, 2)) is None
    check_tokens(tiny_tokenizer(), [{"input_ids": []}, {"input_ids": [3]}], 4)
    with pytest.raises(ValueError, match="example 1 has the token"):
        check_tokens(tiny_tokenizer(), [{"input_ids": []}, {"input_ids": [3]}], 3)
