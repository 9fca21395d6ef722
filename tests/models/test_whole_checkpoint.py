from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertForMaskedLM,
    BertModel,
    LlamaModel,
    PreTrainedModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import save_pretrained
from adazeta.adapters.loading import from_pretrained
from adazeta.models.loading import load_configuration, load_model, sees_ahead
from adazeta.models.whole_checkpoint import check_kind, load_whole
from tests.helpers.tiny_models import (
    CAUSAL,
    tiny_bart,
    tiny_bert_cls,
    tiny_bert_mlm,
    tiny_gpt2_cls,
    tiny_llama,
    tiny_llama_cls,
    tiny_roberta,
    tiny_t5,
)

WEIGHTS = "model.safetensors"


def untied(model: PreTrainedModel) -> PreTrainedModel:
    model.config.tie_word_embeddings = False
    return model


@pytest.mark.parametrize(
    ("made", "task", "missing"),
    [
        (lambda: untied(tiny_llama_cls()), "CAUSAL_LM", "LlamaForCausalLM needs: lm_head.weight"),
        (lambda: LlamaModel(tiny_llama().config), "SEQ_CLS", "score.weight"),
        (lambda: BertModel(tiny_bert_mlm().config), "MASKED_LM", "cls.predictions"),
        (tiny_bert_mlm, "SEQ_CLS", "classifier.bias, classifier.weight"),
        (tiny_bert_mlm, "TOKEN_CLS", "classifier.bias"),
        (tiny_bert_mlm, "QUESTION_ANS", "qa_outputs.bias"),
        (tiny_bert_mlm, "FEATURE_EXTRACTION", "pooler.dense"),
        (tiny_roberta, "SEQ_CLS", "classifier.dense.bias"),
        (lambda: tiny_bart().model, "SEQ_CLS", "classification_head"),
    ],
)
def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path, made, task, missing) -> None:
    made().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"lacks weights that .*{missing}.*random numbers"):
        load_model(tmp_path, task=task)


@pytest.mark.parametrize(
    ("made", "task"),
    [
        (tiny_gpt2_cls, "CAUSAL_LM"),  # its output is tied to its embedding
        (tiny_llama, "CAUSAL_LM"),
        (tiny_roberta, "MASKED_LM"),
        (tiny_bert_cls, "SEQ_CLS"),
        (tiny_bert_cls, "FEATURE_EXTRACTION"),
        (tiny_t5, "SEQ_2_SEQ_LM"),
        (tiny_bart, "SEQ_2_SEQ_LM"),
    ],
)
def test_what_is_tied_or_belongs_to_another_head_may_be_absent(tmp_path: Path, made, task) -> None:
    made().save_pretrained(tmp_path)
    first, second = load_model(tmp_path, task=task), load_model(tmp_path, task=task)
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_prefix_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file(
        {f"transformer.{k}": v for k, v in state.items()}, tmp_path / WEIGHTS, {"format": "pt"}
    )
    with pytest.raises(ValueError, match="lacks weights .* and [0-9]+ more"):
        load_model(tmp_path)


def test_other_sizes_are_refused_in_one_line(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    state["model.norm.weight"] = torch.ones(16)
    save_file(state, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"model.norm.weight in the shape \(16,\), but .* needs \(32,\)"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.2.mlp.up_proj.weight",  # a third block, where the configuration has two
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
    ],
)
def test_weights_of_blocks_that_would_not_be_used_are_refused(tmp_path: Path, key: str) -> None:
    tiny_llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({**state, key: torch.ones(32)}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=f"inside its blocks .* not use: {key}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "key", ["score.weight", "model.layers.0.self_attn.bias", "v_head.summary.weight"]
)
def test_other_heads_and_old_masks_are_left_out(tmp_path: Path, key: str) -> None:
    tiny_llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({**state, key: torch.ones(2)}, tmp_path / WEIGHTS, {"format": "pt"})
    assert load_model(tmp_path).num_parameters() == tiny_llama().num_parameters()


def test_adapters_loaded_by_name_need_the_head_of_their_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_bert_mlm().save_pretrained(base)
    for name, settings in {"frozen": {}, "saved": {"modules_to_save": ["classifier"]}}.items():
        config = TTAdapterConfig(
            rank=2, bottleneck=8, init="paper", task_type="SEQ_CLS", **settings
        )
        config.base_model_name_or_path = str(base)
        model = add_tt_adapters(tiny_bert_cls(), config)
        # The pooler is trained by neither; the base of a classifier has it.
        config.modules_to_save = [*(config.modules_to_save or []), "pooler"]
        save_pretrained(model, tmp_path / name)
    with pytest.raises(ValueError, match="lacks weights .*classifier.bias, classifier.weight"):
        from_pretrained(None, tmp_path / "frozen")
    loaded = from_pretrained(None, tmp_path / "saved")
    assert torch.equal(loaded.get_submodule("classifier").weight, tiny_bert_cls().classifier.weight)


def test_a_base_with_adapters_in_it_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    state["model.layers.0.mlp.down_proj.tt_adapter.down.bias"] = torch.ones(8)
    save_file(state, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"TT adapters .*adazeta.from_pretrained\(base, folder\)"):
        load_model(tmp_path)


def test_an_explicit_class_is_checked_as_well(tmp_path: Path) -> None:
    BertModel(tiny_bert_mlm().config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mine lacks weights that BertForMaskedLM needs"):
        load_whole(BertForMaskedLM, tmp_path, "mine")


@pytest.mark.parametrize(
    "kind",
    [
        *("T5", "MT5", "Bart", "MBart", "Pegasus", "Marian", "M2M100", "Whisper", "Blenderbot"),
        *("LED", "ProphetNet", "SwitchTransformers", "Mvp"),
    ],
)
@pytest.mark.parametrize("task", ["CAUSAL_LM", "MASKED_LM"])
def test_encoder_decoders_are_for_the_trainer(kind: str, task: str) -> None:
    config = getattr(transformers, f"{kind}Config")()
    with pytest.raises(ValueError, match="is an encoder-decoder .*adazeta.ZOTrainer") as error:
        check_kind(config, task, "some/model")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra", "XLMRoberta", "BigBird", "XLM"])
def test_encoders_need_a_mask(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")()
    with pytest.raises(ValueError, match="put {mask} where the word belongs"):
        check_kind(config, "CAUSAL_LM", "some/model")
    check_kind(config, "MASKED_LM", "some/model")


@pytest.mark.parametrize("kind", ["DistilBert", "Deberta", "ModernBert", "MobileBert"])
def test_masked_models_without_a_causal_class_need_a_mask(kind: str) -> None:
    with pytest.raises(ValueError, match="put {mask} into the template"):
        check_kind(getattr(transformers, f"{kind}Config")(), "CAUSAL_LM", "some/model")


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Mamba", "Mixtral"])
def test_causal_models_take_no_mask(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")()
    check_kind(config, "CAUSAL_LM", "some/model")
    with pytest.raises(ValueError, match="take {mask} out of the template"):
        check_kind(config, "MASKED_LM", "some/model")


@pytest.mark.parametrize("kind", ["ViT", "Wav2Vec2", "CLIP", "Hubert", "Swin"])
def test_models_of_images_and_sound_are_refused_in_one_line(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")()
    with pytest.raises(ValueError, match="has no class for the task CAUSAL_LM") as error:
        check_kind(config, "CAUSAL_LM", "some/model")
    assert len(str(error.value)) < 300


def test_an_encoder_that_says_it_is_a_decoder_is_one(tmp_path: Path) -> None:
    config = tiny_bert_mlm().config
    config.is_decoder = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert load_configuration(tmp_path).is_decoder
    assert not sees_ahead(load_model(tmp_path))


@pytest.mark.parametrize("build", CAUSAL)
def test_causal_models_do_not_see_ahead(build) -> None:
    assert not sees_ahead(build())


def test_what_sees_ahead_is_found_out_whatever_it_is_called() -> None:
    assert sees_ahead(tiny_bert_mlm())
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    assert sees_ahead(XLNetLMHeadModel(XLNetConfig(**sizes)).eval())
