"""GGUF files whose blocks stay packed: the same model as the unpacked one, in less memory."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from adazeta.adapters.attach import trainable_parameters
from adazeta.forward.logits import candidate_logits, logits_at
from adazeta.kernels.reference.blocks import FORMATS
from adazeta.models import packed
from adazeta.models.gguf_file import GgufFile
from adazeta.models.loading import load_model, load_tokenizer
from adazeta.models.packed import PackedEmbedding, PackedLinear
from adazeta.models.packed_gguf import load_packed
from tests.helpers.gguf_files import llama_tensors, random_blocks, write_gguf

pytest.importorskip("gguf")

VARIANTS = {
    "llama": {},
    "qwen2": {"biases": True},
    "qwen3": {"norms_of_heads": True, "tied": False, "heads": 2, "groups": 1},
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def file(folder: Path, kind: str = "Q4_1", architecture: str = "llama", **sizes) -> Path:
    tensors, fields = llama_tensors(kind, **{**VARIANTS.get(architecture, {}), **sizes})
    words = sizes.get("words", 96)
    return write_gguf(folder / f"{architecture}.gguf", architecture, tensors, fields, words)


def unpacked(path: Path, dtype: torch.dtype = torch.float32):
    where = {"gguf_file": path.name, "dtype": dtype}
    if hasattr(transformers, "GgufConfig"):
        where["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(path.parent, **where).eval()


IDS = torch.tensor([[5, 17, 80, 3, 9], [1, 2, 95, 0, 44]])


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_computes_what_the_unpacked_model_does(tmp_path, kind):
    path = file(tmp_path, kind)
    model = load_model(path, dtype="float32", quantise="keep")
    plain = unpacked(path)
    linears = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(linears) == 3 * 7 + 1
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            weight = plain.get_submodule(name).weight
            assert torch.equal(module.packed.values(torch.float32), weight)
    with torch.no_grad():
        expected = plain(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-4)
    assert model.get_output_embeddings().packed is model.get_input_embeddings().packed


@pytest.mark.parametrize("architecture", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_architecture_computes_what_the_unpacked_model_does(tmp_path, architecture, dtype):
    path = file(tmp_path, architecture=architecture)
    model = load_model(path, dtype=str(dtype).removeprefix("torch."), quantise="keep")
    plain = unpacked(path, dtype)
    with torch.no_grad():
        found, expected = model(input_ids=IDS).logits, plain(input_ids=IDS).logits
    assert found.dtype == dtype
    bound = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=bound)
    theirs = dict(plain.named_buffers())
    ours = {name: b for name, b in model.named_buffers() if name in theirs}
    assert ours and all(torch.equal(theirs[name], b) for name, b in ours.items())
    values = dict(plain.named_parameters())
    assert all(torch.equal(values[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_some_logits_are_those_of_all(tmp_path, architecture):
    model = load_model(file(tmp_path, architecture=architecture), dtype="float32", quantise="keep")
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        every = model(**inputs).logits
        words, places = torch.tensor([7, 90, 7]), torch.tensor([4, 2])
        for _ in range(2):  # compared on the first call, taken on the second
            found = candidate_logits(model, inputs, places, words)
            rows = torch.arange(2)
            torch.testing.assert_close(found, every[rows, places][:, words], rtol=1e-5, atol=1e-5)
            found = logits_at(model, inputs, rows, places)
            torch.testing.assert_close(found, every[rows, places], rtol=1e-5, atol=1e-5)


def test_large_layers_are_unpacked_in_pieces(tmp_path, monkeypatch):
    model = load_model(file(tmp_path), dtype="float32", quantise="keep")
    whole = model(input_ids=IDS).logits
    x = torch.randn(3, 256, requires_grad=True)
    layer = model.model.layers[0].mlp.up_proj
    layer(x).square().sum().backward()
    gradient, x.grad = x.grad, None
    monkeypatch.setattr(packed, "_MOST", 256 * 50)
    model.model.layers[0].self_attn.q_proj.workspace._memory.clear()
    torch.testing.assert_close(model(input_ids=IDS).logits, whole, rtol=1e-5, atol=1e-5)
    layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, gradient, rtol=1e-4, atol=1e-4)
    held = layer.workspace._memory.values()
    assert max(memory.numel() for memory in held) <= 256 * 50


def test_gradients_go_through_packed_layers(tmp_path):
    path = file(tmp_path, architecture="qwen2")
    model, plain = load_model(path, dtype="float32", quantise="keep"), unpacked(path)
    found = []
    for each in (model, plain):
        states = torch.linspace(-1, 1, 5 * 256).view(1, 5, 256).requires_grad_(True)
        each(inputs_embeds=states).logits.square().mean().backward()
        found.append(states.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_copies_and_other_dtypes(tmp_path):
    model = load_model(file(tmp_path), dtype="float32", quantise="keep")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, twin(input_ids=IDS).logits)
        first = twin.model.layers[0].mlp.up_proj
        assert first.workspace is twin.model.layers[1].mlp.up_proj.workspace
        assert first.workspace is not model.model.layers[0].mlp.up_proj.workspace
        twin.to(torch.bfloat16)
        assert twin(input_ids=IDS).logits.dtype == torch.bfloat16
        with torch.inference_mode():
            model(input_ids=IDS)
        model(input_ids=IDS)


def test_the_file_is_not_changed_and_weights_are_views_of_it(tmp_path):
    path = file(tmp_path)
    before = path.read_bytes()
    model = load_model(path, dtype="float32", quantise="keep")
    read = GgufFile(path)
    assert read.architecture == "llama" and read.fields["llama.block_count"] == 3
    assert torch.equal(
        model.model.layers[1].mlp.up_proj.weight, read.entries["blk.1.ffn_up.weight"].data
    )
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert path.read_bytes() == before


def test_the_model_cannot_be_saved_as_if_it_were_whole(tmp_path):
    model = load_model(file(tmp_path), dtype="float32", quantise="keep")
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "saved")


def test_parameters_are_counted_as_those_of_the_unpacked_model(tmp_path):
    path = file(tmp_path)
    plain = sum(p.numel() for p in unpacked(path).parameters())
    model = load_model(path, dtype="float32", quantise="keep")
    assert trainable_parameters(model) == (0, plain)


def test_frequencies_of_long_contexts_are_divided(tmp_path):
    tensors, fields = llama_tensors("Q8_0")
    factors = torch.linspace(1, 8, 32)
    tensors["rope_freqs.weight"] = (factors, None)
    path = write_gguf(tmp_path / "long.gguf", "llama", tensors, fields, 96)
    model = load_model(path, dtype="float32", quantise="keep")
    plain = load_model(file(tmp_path, "Q8_0"), dtype="float32", quantise="keep")
    found, usual = model.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq
    assert torch.equal(found, usual / factors)


def test_nothing_is_converted_for_tokenizer_and_configuration(tmp_path):
    path = file(tmp_path)
    assert load_tokenizer(path, quantise="keep").convert_tokens_to_ids("c") == 5
    load_model(path, quantise="keep")
    (folder,) = (tmp_path / "cache" / "adazeta" / "models").iterdir()
    assert folder.name.endswith("-packed") and not list(folder.glob("*.safetensors"))


def refused(path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_packed(AutoModelForCausalLM, path, AutoConfig.for_model("llama"), torch.float32)


def test_what_cannot_be_kept_is_refused_by_name(tmp_path):
    tensors, fields = llama_tensors("Q4_0", layers=1)
    other = write_gguf(tmp_path / "a.gguf", "gemma2", tensors, fields, 96)
    refused(other, r"architecture 'gemma2'.*llama, qwen2.*set quantise to 'none'")
    three = torch.zeros(96, 110, dtype=torch.uint8)
    odd = {**tensors, "token_embd.weight": (three, "Q3_K")}
    refused(
        write_gguf(tmp_path / "b.gguf", "llama", odd, fields, 96),
        r"token_embd.weight in the format Q3_K.*set quantise to 'none'",
    )
    path = file(tmp_path)
    with pytest.raises(ValueError, match=r"one of none, keep, bnb-int8.*got 'int3'"):
        load_model(path, quantise="int3")
    with pytest.raises(ValueError, match=r"'keep' keeps the blocks of a \.gguf file"):
        load_model(tmp_path, quantise="keep")


def test_files_that_do_not_fit_are_refused(tmp_path):
    tensors, fields = llama_tensors("Q4_0", layers=1)
    more = {**tensors, "blk.0.ffn_odd.weight": (random_blocks("Q4_0", 4, 256), "Q4_0")}
    path = write_gguf(tmp_path / "more.gguf", "llama", more, fields, 96)
    with pytest.raises(ValueError, match=r"ffn_odd.weight, which LlamaForCausalLM lacks"):
        load_model(path, quantise="keep")
    less = {name: t for name, t in tensors.items() if name != "blk.0.ffn_up.weight"}
    path = write_gguf(tmp_path / "less.gguf", "llama", less, fields, 96)
    with pytest.raises(ValueError, match=r"lacks weights .*layers.0.mlp.up_proj.weight"):
        load_model(path, quantise="keep")
    wide = {**tensors, "blk.0.ffn_up.weight": (random_blocks("Q4_0", 128, 256), "Q4_0")}
    path = write_gguf(tmp_path / "wide.gguf", "llama", wide, fields, 96)
    with pytest.raises(ValueError, match=r"ffn_up.weight in the shape \(128, 256\)"):
        load_model(path, quantise="keep")


def test_damaged_files_are_refused(tmp_path):
    path = file(tmp_path)
    whole = path.read_bytes()
    for count, match in ((len(whole) - 5000, "ends before"), (200, "damaged"), (3, "no GGUF file")):
        path.write_bytes(whole[:count])
        refused(path, match)
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + whole[8:])
    refused(path, "version 9")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model(tmp_path / "none.gguf", quantise="keep")
