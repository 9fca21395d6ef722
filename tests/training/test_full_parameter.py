"""Training of every weight of a model: nothing moves but by updates."""

import copy

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from adazeta import ZOSGD, ZOAdam, ZOTrainer, ZOTrainingArguments
from adazeta.forward.losses import example_losses
from benchmarks.measure.harness import KEYS, Options, Refused
from benchmarks.suites import full_parameter
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama


def data(rows: int = 12, tokens: int = 6) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, tokens), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def batch() -> dict:
    return {key: torch.stack([row[key] for row in data()]) for key in ("input_ids", "labels")}


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("kind", [ZOSGD, ZOAdam])
def test_before_each_update_the_weights_are_what_the_probes_replay_to(kind, rounding):
    model = tiny_gpt2().bfloat16()
    replica = copy.deepcopy(model)
    settings = {"lr": 1e-3, "eps": 1e-2, "check_eps": False, "queries": 2, "rounding": rounding}
    optimizer = kind(model, perturbation="streamed", **settings)
    replay = kind(replica, perturbation="buffer", **settings)
    start = bits(model)
    for _ in range(5):
        optimizer.accumulate(lambda inputs: example_losses(model, inputs)[0], batch())
        assert_same_bits(model, bits(replica))
        optimizer.step()
        replay.apply(optimizer.last)
    assert_same_bits(model, bits(replica))
    assert not torch.equal(start[0], model.transformer.wte.weight)


def trainer(folder, model, **options) -> ZOTrainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "method": "zo-momentum",
        "method_settings": {"momentum": 0.5},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "eps": "1e-2",
        "seed": 3,
        "perturbation": "streamed",
        "diagnostics_steps": 2,
        **options,
    }
    return ZOTrainer(model, ZOTrainingArguments(**settings), train_dataset=data())


def test_the_trainer_streams_logs_its_checks_and_resumes_bit_for_bit(tmp_path):
    model = tiny_llama()
    whole = trainer(tmp_path / "whole", model, save_strategy="steps", save_steps=3)
    whole.train()
    assert whole.zo_optimizer.space.perturbation == "streamed"
    logs = [entry for entry in whole.state.log_history if "restored" in entry]
    assert len(logs) >= 5
    for entry in logs:
        assert entry["restored"] == 1.0 and entry["drift_rms"] == 0.0
        assert entry["moved_share"] > 0.9 and entry["loss_resolution"] > 1
    again = tiny_llama()
    resumed = trainer(tmp_path / "whole", again)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert get_last_checkpoint(str(tmp_path / "whole")).endswith("checkpoint-6")
    assert_same_bits(again, bits(model))


def test_the_trainer_without_checks(tmp_path):
    run = trainer(tmp_path, tiny_llama(), diagnostics_steps=0, max_steps=1)
    run.train()
    assert not any("restored" in entry for entry in run.state.log_history)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"perturbation": "mirror"}, "'in_place', got 'mirror'"),
        ({"diagnostics_steps": -1}, "diagnostics_steps must be 0 or more, got -1"),
    ],
)
def test_bad_settings(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        ZOTrainingArguments(output_dir=str(tmp_path), **setting)


def test_the_benchmark_finds_drift_in_place_and_none_elsewhere():
    rows = full_parameter.rows(Options(small=True, rounds=1))
    assert all(set(row) == set(KEYS) for row in rows)
    share = {r["provider"]: r["median"] for r in rows if r["metric"] == "drifted_share"}
    assert share["streamed"] == share["buffer"] == 0
    assert share["in_place"] > 10 and share["reference"] > 10
    timed = {row["provider"] for row in rows if row["op"] == "step" and row["metric"] == "time"}
    assert timed == {"floor", "streamed", "buffer", "in_place"}


def test_the_benchmark_refuses_a_perturbation_that_drifts(monkeypatch):
    monkeypatch.setattr(full_parameter, "drift", lambda *args: (0.25, 1e-5))
    with pytest.raises(Refused, match="'streamed' 25.00% of the weights"):
        full_parameter.rows(Options(small=True, rounds=1, only="drift"))
