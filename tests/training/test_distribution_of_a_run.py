"""Which noise a run takes that does not say: by what is trained, or by its log."""

import pytest

from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import replay
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import adapted, assert_same_run, make, stopped
from tests.helpers.tiny_models import tiny_llama

OPTIONS = {"probes": "batch", "save_steps": 3}


def own_weights():
    return tiny_llama(layers=1).train()


def logged(folder):
    return read_log(folder / LOG_NAME).header.layout


@pytest.mark.parametrize(
    ("model", "options", "distribution"),
    [
        (own_weights, {}, "pairs"),
        (own_weights, {"distribution": "gaussian"}, "gaussian"),
        (own_weights, {"method": "fzoo"}, "rademacher"),
        (own_weights, {"method": "lozo"}, "gaussian"),
        (adapted, {}, "gaussian"),
        (adapted, {"distribution": "pairs"}, "pairs"),
    ],
)
def test_a_new_run_takes_pairs_for_a_models_own_weights(tmp_path, model, options, distribution):
    make(tmp_path, model(), max_steps=1, **OPTIONS, **options).train()
    layout = logged(tmp_path)
    assert layout.distribution == distribution
    if distribution == "pairs":
        assert all(parameter.offset % 8 == 0 for parameter in layout.parameters)


@pytest.mark.parametrize("begun", ["gaussian", "pairs"])
def test_a_run_goes_on_with_the_noise_of_its_log(tmp_path, begun):
    whole = make(tmp_path / "whole", own_weights(), distribution=begun, **OPTIONS)
    whole.train()
    stopped(tmp_path / "parts", model=own_weights(), distribution=begun, **OPTIONS)
    again = make(tmp_path / "parts", own_weights(), **OPTIONS)
    again.train(resume_from_checkpoint=True)
    assert_same_run(again, whole)
    assert logged(tmp_path / "parts").distribution == begun


def test_a_run_with_pairs_replays_to_the_same_bits(tmp_path):
    trainer = make(tmp_path, own_weights(), distribution="pairs", **OPTIONS)
    trainer.train()
    model = own_weights()
    replay(read_log(tmp_path / LOG_NAME), model)
    assert_same_bits(model, bits(trainer.model))
