import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM, LlamaForCausalLM

from adazeta.models import gguf
from adazeta.models.gguf import converted_gguf
from adazeta.models.loading import best_dtype, load_model, load_model_and_tokenizer, load_tokenizer
from adazeta.support.files import cache_folder
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_llama, tiny_tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "llama"
    tiny_llama().to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_loads_a_folder(checkpoint):
    model, tokenizer = load_model_and_tokenizer(checkpoint, dtype="float32")
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer("great").input_ids == tiny_tokenizer()("great").input_ids
    expected = tiny_llama().to(torch.bfloat16).float().state_dict()
    assert all(torch.equal(expected[k], v) for k, v in model.state_dict().items())


def test_loads_a_masked_model(tmp_path):
    tiny_bert_mlm().save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path, task="MASKED_LM"), BertForMaskedLM)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_can_be_chosen(checkpoint, dtype):
    assert load_model(checkpoint, dtype=dtype).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("accelerator", "capabilities", "expected"),
    [
        (False, {}, torch.float32),
        (False, {"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        (False, {"avx512_bf16": True}, torch.bfloat16),
        (False, {"amx_bf16": True}, torch.bfloat16),
        (True, {}, torch.bfloat16),
    ],
)
def test_auto_is_float32_where_bfloat16_is_slow(
    monkeypatch, checkpoint, accelerator, capabilities, expected
):
    # The boundary: what torch says of the machine.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert load_model(checkpoint, dtype="auto").dtype == expected


def test_auto_is_float32_where_torch_does_not_tell(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert best_dtype() == torch.float32


def test_unknown_names_are_refused(checkpoint):
    with pytest.raises(ValueError, match="dtype must be 'auto'.* got 'int8'"):
        load_model(checkpoint, dtype="int8")
    with pytest.raises(ValueError, match="task must be one of .*got 'CHAT'"):
        load_tokenizer(checkpoint, task="CHAT")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.gguf"):
        load_model(checkpoint / "none.gguf")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "adazeta"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "adazeta"


@pytest.fixture
def conversions(monkeypatch, tmp_path) -> list[Path]:
    """Mock of the conversion alone: a tiny GGUF file cannot be made here; the rest is real."""
    done: list[Path] = []

    def convert(path: Path, task: str, folder: Path) -> None:
        done.append(folder)
        if path.read_bytes() == b"broken":
            (folder / "half").write_text("done")
            raise ValueError("broken file")
        tiny_llama().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_convert", convert)
    return done


def test_a_gguf_file_is_converted_once(conversions, tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"first")
    model, tokenizer = load_model_and_tokenizer(file)
    assert isinstance(model, LlamaForCausalLM)
    assert len(tokenizer) == len(tiny_tokenizer())
    assert load_model(str(file)).num_parameters() == model.num_parameters()
    assert len(conversions) == 1
    first = converted_gguf(file)
    file.write_bytes(b"second")
    assert converted_gguf(file) != first
    assert len(conversions) == 2
    folders = list((tmp_path / "cache" / "adazeta" / "models").iterdir())
    assert len(folders) == 2  # no scratch folder stays


def test_a_failed_conversion_leaves_nothing(conversions, tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="broken file"):
        converted_gguf(file)
    assert list((tmp_path / "cache" / "adazeta" / "models").iterdir()) == []


def test_gguf_is_named_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ImportError, match="pip install gguf"):
        load_model(file)


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the gguf package")
def test_a_file_that_is_not_gguf_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"not a model" * 10)
    with pytest.raises(ValueError):
        load_model(file)
    assert list((tmp_path / "cache" / "adazeta" / "models").iterdir()) == []
