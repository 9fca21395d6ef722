import json

import pytest
import torch
from safetensors.torch import load_file

from adazeta import TTAdapterConfig, ZOTrainer, add_tt_adapters, replay
from adazeta.cli import main
from adazeta.kernels import use_backend
from adazeta.kernels.cpu import library
from adazeta.methods import METHODS, Method
from adazeta.optim.sgd import ZOSGD
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.identity import fingerprint_of_parameters, fingerprint_of_state
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import as_group, with_settings
from adazeta.recording.step_record import LogError
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.runs import CONFIG, arguments, causal_data
from tests.helpers.tiny_models import tiny_llama

RULES = {
    "adam": {"weight_decay": 0.1, "queries": 2},
    "element": {"method_settings": {"second_moment": "element"}, "distribution": "rademacher"},
    "momentum": {"method": "zo-momentum"},
    "sgd": {"method": "mezo", "weight_decay": 0.1},
    "sign": {"method": "zo-sign", "queries": 2},
    "conservative": {
        "method": "zo-conservative",
        "method_settings": {"momentum": 0.5},
        "learning_rate": 0.3,
    },
    "fzoo": {"method": "fzoo", "queries": 3},
    "helene": {"method": "helene", "method_settings": {"hessian": "element", "hessian_every": 2}},
    "adalomo": {"method": "zo-adalomo", "weight_decay": 0.1},
    "extrapolated": {"method": "zo-extrapolated", "weight_decay": 0.1, "queries": 2},
    "helene-window": {
        "method": "helene",
        "method_settings": {"hessian": "element", "hessian_every": 2, "state": "window"},
    },
}
# The C library is optional: it needs a compiler at the time of the installation.
# Compiled kernels serve no tensors of a CPU; on a card test_gpu_ops.py compares the bits.
BACKENDS = [
    "reference",
    *([] if torch.cuda.is_available() else ["triton"]),
    *(["native"] if library.problem() is None else []),
]


def adapted():
    return add_tt_adapters(tiny_llama(layers=1), TTAdapterConfig(**CONFIG))


def trained(folder, model, **options):
    options = {"probes": "batch", "max_steps": 4, **options}
    trainer = ZOTrainer(model, arguments(folder, **options), train_dataset=causal_data(12))
    trainer.train()
    return trainer


@pytest.fixture(scope="module", params=RULES)
def run(request, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), adapted(), **RULES[request.param])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_rebuilds_the_same_bits(run, backend):
    model = adapted()
    with use_backend(backend):
        optimizer = replay(f"{run.args.output_dir}/{LOG_NAME}", model)
    assert_same_bits(model, bits(run.model))
    assert fingerprint_of_state(optimizer) == fingerprint_of_state(run.zo_optimizer)


def test_up_to_a_step(run, tmp_path):
    log = read_log(f"{run.args.output_dir}/{LOG_NAME}")
    untouched = adapted()
    assert replay(log, untouched, to_step=0).steps == 0
    assert_same_bits(untouched, bits(adapted()))
    parts = adapted()
    optimizer = replay(log, parts, to_step=2)
    for record, settings in list(with_settings(log))[2:]:
        assert record.step == optimizer.steps
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(as_group(values))
        optimizer.apply(record.probes(torch.device("cpu")))
    assert_same_bits(parts, bits(run.model))
    with pytest.raises(ValueError, match="to_step is 5.*has steps 0 to 4"):
        replay(log, adapted(), to_step=5)


def test_a_rule_of_one_class_and_one_entry_replays(tmp_path, monkeypatch):
    class Halved(ZOSGD):
        def update(self, group, *rest):
            super().update({**group, "lr": group["lr"] / 2}, *rest)

    monkeypatch.setitem(METHODS, "halved", Method("here", "half as far as mezo", Halved))
    trainer = trained(tmp_path, adapted(), method="halved")
    again, model = trained(tmp_path / "mezo", adapted(), method="mezo").model, adapted()
    optimizer = replay(tmp_path / LOG_NAME, model)
    assert type(optimizer) is Halved
    assert_same_bits(model, bits(trainer.model))
    with pytest.raises(AssertionError):
        assert_same_bits(model, bits(again))


def test_half_precision_parameters_round_as_they_did(tmp_path):
    def half():
        return tiny_llama(layers=1).to(torch.bfloat16)

    trainer = trained(
        tmp_path, half(), learning_rate=1e-4, max_steps=3, method="mezo", distribution="gaussian"
    )
    for backend in BACKENDS:
        model = half()
        with use_backend(backend):
            replay(tmp_path / LOG_NAME, model)
        assert_same_bits(model, bits(trainer.model))


def test_a_model_that_does_not_fit_is_refused_and_left_alone(run):
    path = f"{run.args.output_dir}/{LOG_NAME}"
    other = add_tt_adapters(tiny_llama(layers=1), TTAdapterConfig(**{**CONFIG, "rank": 3}))
    before = bits(other)
    with pytest.raises(LogError, match="does not fit this model: trainable parameter 1"):
        replay(path, other)
    assert_same_bits(other, before)
    with pytest.raises(LogError, match="begins with other values"):
        replay(path, add_tt_adapters(tiny_llama(layers=1), TTAdapterConfig(**CONFIG), seed=5))


def test_the_command_makes_the_adapters_from_the_base_alone(tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "run"
    tiny_llama(layers=1).save_pretrained(base)
    model = type(tiny_llama(layers=1)).from_pretrained(base)
    config = {**CONFIG, "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    trainer = trained(folder, add_tt_adapters(model, TTAdapterConfig(**config), seed=2))
    trainer.save_model()
    capsys.readouterr()
    assert main(["replay", str(folder), "--output", str(tmp_path / "again"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["steps"] == 4
    assert row["parameters"] == fingerprint_of_parameters(trainer.zo_optimizer)
    there = load_file(folder / "adapter_model.safetensors")
    here = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)

    assert main(["replay", str(folder / LOG_NAME), "--to-step", "2", "--show"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [0, 1] and lines[0]["seeds"]

    assert main(["replay", str(folder), "--to-step", "9"]) == 2
    assert "has steps 0 to 4" in capsys.readouterr().err
    assert main(["replay", str(tmp_path)]) == 2
    assert LOG_NAME in capsys.readouterr().err
    (tmp_path / "x").write_bytes(b"zip")
    assert main(["replay", str(tmp_path / "x")]) == 2
    assert "is not a probe log" in capsys.readouterr().err


def test_the_command_rebuilds_a_whole_model(tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "run"
    tiny_llama(layers=1).save_pretrained(base)
    model = type(tiny_llama(layers=1)).from_pretrained(base)
    trainer = trained(folder, model, learning_rate=1e-4, max_steps=2)
    assert main(["replay", str(folder), "--output", str(tmp_path / "again")]) == 0
    again = type(model).from_pretrained(tmp_path / "again")
    assert_same_bits(again, bits(trainer.model))
