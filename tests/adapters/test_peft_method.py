"""The adapters as a method of PEFT, used as PEFT's users use one."""

import json
import subprocess
import sys

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

import adazeta
from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import save_pretrained
from adazeta.adapters.loading import from_pretrained
from adazeta.adapters.peft_method import TTConfig, TTLayer
from adazeta.parameters.space import ParameterSpace
from tests.helpers.bits import same_bits
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_gpt2, tiny_llama, tiny_llama_cls, tiny_t5

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # peft 0.18, of a base model that has no name.
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]

IDS = torch.arange(24).reshape(2, 12) % 90 + 5
FORMS = [
    {"form": "lora", "rank": 3, "init": "paper"},
    {"form": "lora", "rank": 3, "init": "paper", "target_modules": "all-linear"},
    {"rank": 3, "bottleneck": 8, "init": "paper"},
    {"rank": 3, "bottleneck": 8, "init": "paper", "activation": "silu", "layers": [1]},
]


@torch.no_grad()
def logits(model):
    if model.config.is_encoder_decoder:
        return model(input_ids=IDS, decoder_input_ids=IDS).logits
    return model(input_ids=IDS).logits


def filled(model, value=0.05):
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "tt_adapter" in name:
            with torch.no_grad():
                parameter += value * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(2)
                )
    return model


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_bert_mlm, tiny_t5])
def test_computes_and_saves_what_add_tt_adapters_does(make, settings, tmp_path):
    own = add_tt_adapters(make(), TTAdapterConfig(**settings))
    model = get_peft_model(make(), TTConfig(**settings))
    assert same_bits(logits(model), logits(own))
    assert {p.numel() for p in model.parameters() if p.requires_grad} == {
        p.numel() for p in own.parameters() if p.requires_grad
    }
    filled(model)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(make(), tmp_path)
    assert same_bits(logits(loaded), logits(model))
    save_pretrained(loaded, tmp_path / "ours")
    again = PeftModel.from_pretrained(make(), tmp_path / "ours")
    assert same_bits(logits(again), logits(model))
    assert not any(p.requires_grad for p in again.parameters())


def test_a_new_one_changes_nothing_and_only_it_is_trained():
    model = get_peft_model(tiny_llama(), TTConfig(form="lora"))
    assert same_bits(logits(model), logits(tiny_llama()))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".tt_adapter.default.cores." in name for name in trained)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_several_adapters_are_added_chosen_disabled_and_deleted(tmp_path):
    model = filled(get_peft_model(tiny_llama(), TTConfig(form="lora", rank=3)))
    first = logits(model)
    config = TTConfig(rank=2, bottleneck=8, init="paper", target_modules=["o_proj"])
    model.add_adapter("second", config)
    assert same_bits(logits(model), first)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".second." in n)
    model.set_adapter("second")
    second = logits(model)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names and all(".tt_adapter.second." in name for name in names)
    assert not torch.equal(first, second)
    with model.disable_adapter():
        assert same_bits(logits(model), logits(tiny_llama()))
    model.save_pretrained(tmp_path)
    model.set_adapter("default")
    assert same_bits(logits(model), first)
    model.delete_adapter("second")
    assert not any(".second." in name for name, _ in model.named_parameters())
    assert same_bits(logits(model), first)

    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert any(p.requires_grad for p in loaded.parameters())
    loaded.load_adapter(str(tmp_path / "second"), adapter_name="other")
    assert same_bits(logits(loaded), first)
    loaded.set_adapter("other")
    assert same_bits(logits(loaded), second)
    assert same_bits(logits(loaded.unload()), logits(tiny_llama()))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_linear_form_is_merged_by_peft_too(make):
    model = filled(get_peft_model(make(), TTConfig(form="lora", rank=3, scale=0.5)))
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    plain = model.merge_and_unload(safe_merge=True)
    assert not any(isinstance(m, TTLayer) for m in plain.modules())
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)
    bottleneck = get_peft_model(make(), TTConfig(rank=2, bottleneck=8))
    with pytest.raises(ValueError, match="'default' is a bottleneck"):
        bottleneck.merge_adapter()


def test_perturbed_copies_share_a_forward():
    model = get_peft_model(tiny_llama(), TTConfig(form="lora", rank=3))
    space = ParameterSpace(model)
    assert space.stackable
    with torch.no_grad(), space.stacked(torch.tensor([3, 4]), torch.tensor([0.3, -0.2])):
        stacked = model(input_ids=IDS.repeat(2, 1)).logits
    with space.perturbed(4, -0.2):
        torch.testing.assert_close(logits(model), stacked[2:], atol=1e-5, rtol=1e-4)


def test_modules_to_save_and_a_task_go_along(tmp_path):
    config = TTConfig(form="lora", rank=3, task_type="SEQ_CLS")
    model = filled(get_peft_model(tiny_llama_cls(), config))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if p.requires_grad and "score" in n).add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama_cls(), tmp_path)
    assert same_bits(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "informed"}, "form='informed' is not possible under PEFT"),
        ({"tt_head_rank": 3}, "tt_head_rank=3 is not possible under PEFT"),
        ({"rank": 0}, "rank must be an integer of at least 1"),
    ],
)
def test_what_peft_has_no_place_for_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TTConfig(**settings)


def test_the_files_name_the_method(tmp_path):
    get_peft_model(tiny_llama(), TTConfig(form="lora")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["target_modules"]) == ("ADAZETA", "block")
    assert isinstance(peft.PeftConfig.from_pretrained(tmp_path), TTConfig)
    assert adazeta.TTConfig is TTConfig


@pytest.mark.slow
def test_importing_the_configuration_is_all_that_a_new_process_needs(tmp_path):
    model = filled(get_peft_model(tiny_llama(), TTConfig(form="lora", rank=3)))
    model.save_pretrained(tmp_path / "adapters")
    tiny_llama().save_pretrained(tmp_path / "base")
    torch.save(logits(model), tmp_path / "logits.pt")
    code = (
        "import torch, transformers, peft\n"
        "from adazeta import TTConfig\n"
        "base = transformers.AutoModelForCausalLM.from_pretrained('base')\n"
        "model = peft.PeftModel.from_pretrained(base, 'adapters')\n"
        "ids = torch.arange(24).reshape(2, 12) % 90 + 5\n"
        "with torch.no_grad(): found = model(input_ids=ids).logits\n"
        "assert torch.equal(found, torch.load('logits.pt'))\n"
    )
    root = adazeta.__path__[0] + "/.."
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"],
        cwd=tmp_path, check=True,
    )  # fmt: skip


def test_adapters_that_were_dropped_in_training_load_but_are_not_trained_on(tmp_path):
    config = {"rank": 3, "bottleneck": 8, "init": "paper", "drop": 0.2}
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**config)).eval()
    save_pretrained(model, tmp_path)
    assert same_bits(
        logits(PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()), logits(model)
    )
    with pytest.raises(ValueError, match="drop=0.2 is not possible under PEFT"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    with pytest.raises(ValueError, match="drop=0.2 is not possible under PEFT"):
        TTConfig(**config)
