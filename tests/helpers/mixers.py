"""Tiny models with a feature mixer."""

import torch

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.mixer import FeatureMixer
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_gpt2, tiny_llama

SMALL = {"form": "mixer", "rank": 2, "bottleneck": 8, "bias": False}
MODELS = [tiny_llama, tiny_bert_mlm, tiny_gpt2]


def with_mixer(make=tiny_llama, layers=6, moved=True, **config):
    """A model with a mixer; moved: all of whose numbers are random."""
    model = add_tt_adapters(make(layers=layers), TTAdapterConfig(**{**SMALL, **config}))
    generator = torch.Generator().manual_seed(0)
    for _, mixer in attached_adapters(model):
        for parameter in mixer.parameters() if moved else ():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def mixer_of(model):
    ((_, mixer),) = attached_adapters(model)
    assert isinstance(mixer, FeatureMixer)
    return mixer
