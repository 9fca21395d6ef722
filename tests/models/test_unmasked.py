"""Forwards of batches in which nothing is masked, without a look at the device."""

from unittest import mock

import pytest
import torch

from adazeta.models.unmasked import unmasked
from tests.helpers.tiny_models import LANGUAGE, tiny_bert_cls, tiny_gpt2_cls, tiny_llama


def looking():
    """Let transformers take the stream for one that is captured."""
    return mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True)


@pytest.mark.parametrize("make", [*LANGUAGE, tiny_bert_cls, tiny_gpt2_cls])
@pytest.mark.parametrize("mask", [True, False])
@torch.no_grad()
def test_the_bits_are_those_of_a_forward_that_looks(make, mask):
    model = make(layers=1)
    ids = torch.randint(5, 50, (2, 7))
    inputs = {"input_ids": ids, **({"attention_mask": torch.ones_like(ids)} if mask else {})}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    before = dict(vars(model.config))
    expected = model(**inputs, use_cache=False).logits
    with looking(), unmasked(model):
        found = model(**inputs, use_cache=False).logits
    assert torch.equal(found, expected)
    assert vars(model.config) == before
    assert not model._forward_pre_hooks


def test_the_attention_is_the_models_own_again_after_an_exception():
    model = tiny_llama(layers=1)
    with pytest.raises(KeyError), unmasked(model):
        assert model.config._attn_implementation != "sdpa"
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
