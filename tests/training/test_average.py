"""Runs that keep an average: what they evaluate and save, stop and go on with, and replay."""

import json

import pytest
import torch
from safetensors.torch import load_file

from adazeta import (
    FOTrainer,
    FOTrainingArguments,
    TTAdapterConfig,
    ZOAdam,
    ZOTrainer,
    ZOTrainingArguments,
    add_tt_adapters,
    from_pretrained,
    replay,
)
from adazeta.cli import main
from adazeta.directions.reparametrise import merged_state_dict
from adazeta.kernels import use_backend
from adazeta.kernels.cpu import library
from adazeta.methods import make_optimizer
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.identity import fingerprint_of_parameters, fingerprint_of_state
from adazeta.recording.probe_log import read_log
from adazeta.recording.step_record import LogError
from tests.helpers.bits import assert_same_bits, bits, same_bits
from tests.helpers.runs import (
    CONFIG,
    adapted,
    arguments,
    assert_same_run,
    causal_data,
    crash_after,
    make,
    stopped,
)
from tests.helpers.tiny_models import tiny_llama

AVERAGE = {"average": 0.9, "lr_scheduler_type": "constant", "learning_rate": 0.1}
BACKENDS = ["reference", *(["native"] if library.problem() is None else [])]


def first_order(folder, **options):
    defaults = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4,
        "save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "seed": 3, **AVERAGE, "learning_rate": 0.05,
    }  # fmt: skip
    settings = FOTrainingArguments(**{**defaults, **options})
    return FOTrainer(
        adapted(), settings, train_dataset=causal_data(12), eval_dataset=causal_data(4)
    )


ORDERS = {
    "zeroth": lambda folder, **more: make(folder, **{**AVERAGE, **more}),
    "first": first_order,
}


@pytest.fixture(params=ORDERS)
def start(request):
    return ORDERS[request.param]


def averaged(trainer):
    with trainer.final_weights():
        return bits(trainer.model)


def loss_of(model):
    data = causal_data(4)
    ids = torch.stack([row["input_ids"] for row in data])
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


def test_what_is_evaluated_and_saved_is_the_average(tmp_path, start):
    trainer = start(tmp_path, eval_strategy="steps", eval_steps=6)
    trainer.train()
    trained, average = bits(trainer.model), averaged(trainer)
    assert not all(torch.equal(a, b) for a, b in zip(trained, average, strict=True))
    trainer.save_model()
    saved = from_pretrained(tiny_llama(layers=1), tmp_path)
    assert_same_bits(saved, average)
    (entry,) = [e for e in trainer.state.log_history if "eval_loss" in e]
    assert entry["eval_loss"] == pytest.approx(loss_of(saved), abs=1e-5)
    assert abs(loss_of(trainer.model) - loss_of(saved)) > 1e-4
    predicted = trainer.predict(causal_data(4))
    assert predicted.metrics["test_loss"] == pytest.approx(entry["eval_loss"])
    # A checkpoint is what a run goes on from.
    last = tmp_path / "checkpoint-6"
    names = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    found = load_file(last / "model.safetensors")
    values = dict(zip((n for n, _ in trainer.model.named_parameters()), trained, strict=True))
    assert all(same_bits(found[name], values[name]) for name in names)
    assert_same_bits(from_pretrained(tiny_llama(layers=1), last), trained)
    assert_same_bits(trainer.model, trained)


def test_a_run_that_was_stopped_goes_on_with_the_same_average(tmp_path, start):
    whole = start(tmp_path / "whole")
    whole.train()
    crash_after(start(tmp_path / "parts"), 3)  # of first order: back to the checkpoint of step 2
    again = start(tmp_path / "parts")
    again.train(resume_from_checkpoint=True)
    assert_same_bits(again.model, bits(whole.model))
    for a, b in zip(averaged(again), averaged(whole), strict=True):
        assert same_bits(a, b)
    if start is not first_order:
        assert_same_run(again, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_replay_has_the_same_average(tmp_path, backend):
    method = {"reference": "zo-adam", "native": "zo-conservative"}[backend]
    trainer = make(tmp_path, **AVERAGE, method=method, average_warmup=False, save_strategy="no")
    trainer.train()
    model = adapted()
    with use_backend(backend):
        optimizer = replay(tmp_path / LOG_NAME, model)
    assert fingerprint_of_state(optimizer) == fingerprint_of_state(trainer.zo_optimizer)
    with optimizer.averaged():
        assert_same_bits(model, averaged(trainer))
    assert_same_bits(model, bits(trainer.model))


def test_the_command_saves_what_the_run_saved(tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "run"
    tiny_llama(layers=1).save_pretrained(base)
    model = type(tiny_llama(layers=1)).from_pretrained(base)
    config = {**CONFIG, "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    trainer = make(folder, add_tt_adapters(model, TTAdapterConfig(**config), seed=2), **AVERAGE)
    trainer.train()
    trainer.save_model()
    capsys.readouterr()
    assert main(["replay", str(folder), "--output", str(tmp_path / "again"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["parameters"] == fingerprint_of_parameters(trainer.zo_optimizer)
    with trainer.final_weights():
        assert row["average"] == fingerprint_of_parameters(trainer.zo_optimizer)
    there, here = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "again"))
    assert all(same_bits(there[name], here[name]) for name in there)


def test_without_it_log_and_files_are_as_before(tmp_path):
    with_it, without = (make(tmp_path / n, **o) for n, o in (("a", AVERAGE), ("b", {})))
    without.args.learning_rate, without.args.lr_scheduler_type = 0.1, with_it.args.lr_scheduler_type
    for trainer in (with_it, without):
        trainer.train()
    assert_same_bits(without.model, bits(with_it.model))
    ours, plain = (read_log(tmp_path / name / LOG_NAME) for name in "ab")
    assert [record for record in ours] == [record for record in plain]
    assert not any("average" in key for group in plain.header.optimizer.groups for key in group)
    state = load_file(tmp_path / "b/checkpoint-6/zeroth_order.safetensors")
    assert not any("average" in name for name in state)


def test_a_run_that_goes_on_keeps_the_average_it_began_with(tmp_path, start):
    crash_after(start(tmp_path), 5)
    for other in ({"average": 0.5}, {"average": 0.0}, {"average_warmup": False}):
        with pytest.raises((LogError, ValueError), match="average"):
            start(tmp_path, **other).train(resume_from_checkpoint=True)


def test_a_run_without_one_cannot_go_on_with_one(tmp_path):
    stopped(tmp_path)
    with pytest.raises(LogError, match="its average is 0, here it is 0.9"):
        make(tmp_path, average=0.9).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", [ZOTrainingArguments, FOTrainingArguments])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"average": 1.0}, "average must be 0 .off. or more and less than 1, got 1.0"),
        ({"average_warmup": False}, "belongs to an average"),
        (
            {"average": 0.9, "load_best_model_at_end": True, "eval_strategy": "steps"},
            "load_best_model_at_end=True",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "newton"}, "means nothing with method='newton'"),
        ({"method": "lozo"}, "means nothing with method='lozo'"),
        ({"perturbation": "streamed"}, "needs perturbation='buffer', got 'streamed'"),
    ],
)
def test_methods_without_an_average_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ZOTrainingArguments(output_dir=str(tmp_path), use_cpu=True, average=0.9, **options)


def test_an_optimizer_of_ones_own_keeps_its_average_and_none_is_ignored(tmp_path):
    for number, given in enumerate((0.9, 0.0)):
        model = adapted()
        own = ZOAdam(model, lr=0.1, eps=1e-2, average=given, seed=3)
        options = {"max_steps": 2, "save_strategy": "no", "average": 0.9}
        trainer = ZOTrainer(
            model,
            arguments(tmp_path / str(number), **options),
            train_dataset=causal_data(12),
            optimizers=(own, None),
        )
        if given:
            trainer.train()
            for a, p in zip(averaged(trainer), bits(model), strict=True):
                assert a.shape == p.shape
            assert not all(map(torch.equal, averaged(trainer), bits(model)))
        else:
            with pytest.raises(ValueError, match="for the optimizer that this trainer makes"):
                trainer.train()


def test_elements_that_are_chosen_once_have_an_average(tmp_path):
    model = tiny_llama(layers=1)
    optimizer = make_optimizer(
        model, "sparse-mezo", lr=0.1, average=0.5, perturbation="buffer", check_eps=False, eps=1e-2
    )
    ids = torch.stack([row["input_ids"] for row in causal_data(4)])
    before = {name: value.clone() for name, value in merged_state_dict(model).items()}
    for _ in range(3):
        optimizer.step(lambda: model(input_ids=ids, labels=ids).loss)
    trained = {name: value.clone() for name, value in merged_state_dict(model).items()}
    with optimizer.averaged():
        mean = merged_state_dict(model)
        changed = [n for n in before if not torch.equal(before[n], trained[n])]
        assert changed
        for name in changed:
            assert not torch.equal(mean[name], trained[name])
            assert not torch.equal(mean[name], before[name])


def test_parameters_in_half_precision_are_refused(tmp_path):
    settings = FOTrainingArguments(output_dir=str(tmp_path), use_cpu=True, average=0.9)
    model = tiny_llama(layers=1).to(torch.bfloat16)
    with pytest.raises(ValueError, match="some are torch.bfloat16"):
        FOTrainer(model, settings)
