"""The output embedding of a prefill: no copies of the weight, the same logits."""

import pytest
import torch

from adazeta.forward.decode import Decoding, decode
from adazeta.forward.head import contiguous_head
from tests.helpers.tiny_models import tiny_llama


def test_the_head_gets_contiguous_inputs_and_is_left_as_it_was():
    model = tiny_llama().requires_grad_(False)
    seen = []
    ids = torch.randint(0, 20, (3, 5))
    with torch.no_grad():
        expected = model(input_ids=ids, logits_to_keep=1).logits
        with contiguous_head(model):
            model.lm_head.register_forward_hook(lambda m, i, o: seen.append(i[0].is_contiguous()))
            found = model(input_ids=ids, logits_to_keep=1).logits
    assert seen == [True] and not model.lm_head._forward_pre_hooks
    torch.testing.assert_close(found, expected)
    with pytest.raises(KeyError), contiguous_head(model):
        raise KeyError
    assert not model.lm_head._forward_pre_hooks
    with contiguous_head(torch.nn.Linear(2, 2)):
        pass


def test_decoding_multiplies_with_the_head_in_one_product():
    model = tiny_llama().requires_grad_(False)
    ids = torch.randint(5, 20, (6, 4))
    with torch.profiler.profile(record_shapes=True) as profile:
        decode(model, ids, torch.ones_like(ids), Decoding(2))
    vocabulary = model.config.vocab_size
    products = {
        event.key
        for event in profile.key_averages(group_by_input_shape=True)
        if event.key in ("aten::mm", "aten::bmm") and vocabulary in sum(event.input_shapes, [])
    }
    assert products == {"aten::mm"}
