"""The space of informed adapters where texts are scored."""

import pytest
import torch

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.informed import inform_by_scores
from tests.helpers.tiny_models import tiny_llama


def informed(scores, texts=12, answers=3, components=4):
    """A model with one informed adapter, and the mean hidden state of each text's tokens."""
    model = tiny_llama(layers=2)
    config = TTAdapterConfig(form="informed", components=components, answers=answers, layers=[0])
    add_tt_adapters(model, config)
    ids = torch.randint(5, 100, (texts, 7), generator=torch.Generator().manual_seed(4))
    adapters = [adapter for _, adapter in attached_adapters(model)]
    seen = []
    handle = adapters[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0]), prepend=True
    )
    above = model.model.layers[1].register_forward_pre_hook(lambda *_: pytest.fail("not needed"))
    inform_by_scores(
        adapters,
        lambda rows: model(input_ids=ids[rows]),
        [slice(0, 5), slice(5, None)],
        lambda hidden: hidden[:, 3:].flatten(0, 1),
        torch.arange(texts).repeat_interleave(4),
        scores,
    )
    handle.remove()
    above.remove()
    return model, adapters[0], torch.cat(seen)[:, 3:].detach(), ids


def test_the_first_direction_goes_with_the_score_and_the_rest_are_orthonormal():
    scores = torch.linspace(-1, 1, 12)
    _, adapter, hidden, _ = informed(scores)
    means = hidden.mean(1).double()
    covariance = (scores.double()[:, None] * (means - means.mean(0))).sum(0)
    length = adapter.outputs[0].norm()
    torch.testing.assert_close(
        adapter.outputs[0].double() / length, covariance / covariance.norm(), atol=1e-5, rtol=1e-4
    )
    gram = adapter.outputs @ adapter.outputs.T / length**2
    torch.testing.assert_close(gram, torch.eye(3), atol=1e-5, rtol=0)
    share = length / hidden.norm(dim=-1).mean()
    torch.testing.assert_close(share.item(), 0.05, rtol=1e-4, atol=0)
    assert adapter.inputs.abs().sum() > 0


def test_the_model_is_as_it_was_before_training():
    model, _, _, ids = informed(torch.linspace(-1, 1, 12))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, tiny_llama(layers=2)(input_ids=ids).logits)


def test_equal_scores_leave_the_components():
    _, adapter, hidden, _ = informed(torch.ones(12))
    means = hidden.mean(1)
    first = torch.linalg.svd(means - means.mean(0)).Vh[0]
    found = adapter.outputs[0] / adapter.outputs[0].norm()
    torch.testing.assert_close((found @ first).abs().item(), 1.0, atol=1e-4, rtol=0)


def test_one_text_is_too_few():
    with pytest.raises(ValueError, match="two scored texts"):
        inform_by_scores([], print, [], lambda h: h, torch.tensor([0]), torch.tensor([1.0]))
