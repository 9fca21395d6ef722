"""The benchmark suite: its reference path is right, its rows are complete, its checks bite."""

import dataclasses
import json

import pytest
import torch

from adazeta.kernels import gaussian
from benchmarks.__main__ import ALL, SUITES, main, seeds_of, write
from benchmarks.measure import compare, harness, targets
from benchmarks.measure.harness import Cell, Options, Refused
from benchmarks.report import figures
from benchmarks.subjects import reference_path, steps
from benchmarks.subjects.steps import FirstOrderStep, OurStep, lora_model
from benchmarks.subjects.workload import small_workload
from benchmarks.suites import memory, noise, tt
from tests.helpers.rows import check_rows

OPTIONS = Options(small=True, rounds=2)


@pytest.fixture(scope="module")
def work():
    return small_workload()


def first_order_gradient(work, model, batch):
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = work.losses(model, batch)[0].mean()
    return parameters, torch.autograd.grad(loss, parameters)


# The reference path


def test_the_reference_noise_repeats_for_a_seed_and_visits_tensors_in_order():
    source = reference_path.TorchNoise()
    shapes = [torch.empty(3), torch.empty(2, 2)]
    source.reset(5)
    first = [source.normal(shape) for shape in shapes]
    source.reset(5)
    again = [source.normal(shape) for shape in shapes]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1].view(-1)[:3])


@pytest.mark.parametrize("placement", ["adapters_all", "adapters_last10", "full"])
def test_reference_and_package_estimate_and_update_alike(work, placement):
    steps.check(work, placement)


@pytest.mark.parametrize("queries", [1, 3])
def test_the_reference_update_is_its_formula(work, queries):
    model = work.model("adapters_all")
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    batch = work.batch(4)
    official = reference_path.ReferenceStep(
        model,
        lambda m, b: reference_path.full_logits_loss(m, b, work.candidates),
        eps=1e-2,
        lr=0.1,
        queries=queries,
        weight_decay=0.5,
        noise=reference_path.counter_noise_of(model),
    )
    official.step(batch)
    assert len(set(official.seeds)) == queries
    offsets = reference_path.counter_noise_of(model)._offsets
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for (name, parameter), start, theta in zip(named, offsets, before, strict=True):
        g = sum(
            c * gaussian(s, start, theta.numel()).view_as(theta)
            for s, c in zip(official.seeds, official.projected, strict=True)
        )
        decay = 0.0 if "bias" in name else 0.5
        expected = theta - 0.1 * (g / queries + decay * theta)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-5)


def test_the_reference_projects_the_true_gradient(work):
    model = work.model("adapters_all")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)  # away from the zero start
    batch = work.batch(4)
    parameters, gradient = first_order_gradient(work, model, batch)
    noise_source = reference_path.counter_noise_of(model)
    noise_source.reset(3)
    pairs = zip(parameters, gradient, strict=True)
    slope = sum((g * noise_source.normal(p)).sum() for p, g in pairs).item()
    official = reference_path.ReferenceStep(
        model,
        lambda m, b: reference_path.full_logits_loss(m, b, work.candidates),
        eps=1e-3,
        lr=0.0,
        noise=reference_path.counter_noise_of(model),
    )
    official.step(batch, seeds=[3])
    # Losses near 0.7 are exact to about 1e-7; over 2 eps that is 1e-4.
    assert official.projected[0] == pytest.approx(slope, rel=0.02, abs=5e-4)


def test_the_tensordot_adapter_is_the_dense_one():
    adapter = tt._adapter(40, "cpu")
    x = torch.randn(3, 5, 40)
    down = x @ adapter.down.to_matrix() + adapter.down.bias
    expected = x + down.relu() @ adapter.up.to_matrix() + adapter.up.bias
    torch.testing.assert_close(reference_path.tt_adapter(adapter, x), expected)


def test_a_twin_shares_frozen_weights_only(work):
    model = work.model("adapters_all")
    twin = reference_path.as_reference(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p is q) == (not p.requires_grad)
    batch = work.batch(3)
    torch.testing.assert_close(work.losses(model, batch)[0], work.losses(twin, batch)[0])


def test_full_and_candidate_logits_give_one_loss(work):
    batch = work.batch(4)
    full = reference_path.full_logits_loss(work.base, batch, work.candidates)
    torch.testing.assert_close(full, work.losses(work.base, batch)[0].mean())


# The steps that are timed


def test_the_measured_step_does_what_it_says(work):
    batch = work.batch(4)
    ours = OurStep(work, work.model("adapters_all"), batch, queries=3, probes_per_forward="2")
    assert ours.stack() == 2
    ours()
    assert len(ours.optimizer.last) == 3
    assert ours.optimizer.evaluations == 6
    assert ours.optimizer.steps == 1


def test_first_order_baselines_learn(work):
    batch = work.batch(4)
    model = lora_model(work)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    train = FirstOrderStep(work, model, batch, lr=1e-2)
    losses = [train() for _ in range(6)]
    assert losses[-1] < losses[0]
    assert not any(p.requires_grad for p in work.base.parameters())


# Refusing


def test_a_wrong_projected_gradient_is_refused():
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    steps.compare_steps([1.0], [1.0], parameters, parameters, 1e-3)
    with pytest.raises(Refused, match="projected gradient"):
        steps.compare_steps([1.0], [1.1], parameters, parameters, 1e-3)
    moved = [torch.nn.Parameter(torch.ones(3))]
    with pytest.raises(Refused, match="updated parameters differ"):
        steps.compare_steps([1.0], [1.0], parameters, moved, 1e-3)


def test_wrong_noise_is_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    def wrong(tensors, seeds, coefficients, **options):
        for tensor in tensors:
            tensor.add_(1e-3)

    monkeypatch.setattr(noise, "add_noise_", wrong)
    file = tmp_path / "rows.json"
    assert main(["noise", "--small", "--rounds", "2", "--json", str(file)]) == 1
    assert json.loads(file.read_text()) == []
    assert "does not equal its definition" in capsys.readouterr().err


def test_a_wrong_adapter_is_refused(monkeypatch):
    monkeypatch.setattr(reference_path, "tt_adapter", lambda module, x: x)
    with pytest.raises(Refused, match="does not equal the reference composition"):
        tt.rows(OPTIONS)


# Rows


def test_the_timed_suites_write_rows(tmp_path, capsys):
    file = tmp_path / "rows.json"
    flags = ["--small", "--rounds", "2", "--json", str(file)]
    suites = {
        "noise": {"pass", "step"},
        "tt": {"tt_linear", "tt_adapter"},
        "step": {"adapters_all", "adapters_last10", "full", "parts"},
    }
    assert main([*suites, *flags]) == 0
    for name, operations in suites.items():
        rows = [row for row in json.loads(file.read_text()) if row["benchmark"] == name]
        check_rows(rows)
        assert {row["op"] for row in rows} == operations
    every = json.loads(file.read_text())
    assert {row["benchmark"] for row in every} == {"noise", "tt", "step"}
    assert {"reference", "adazeta", "floor"} <= {row["provider"] for row in every}
    assert {"time", "speedup_over_reference"} <= {row["metric"] for row in every}
    assert "speedup_over_reference" in capsys.readouterr().out
    # The same cells again replace the old ones.
    assert main(["tt", *flags, "--compare", str(file)]) == 0
    assert len(json.loads(file.read_text())) == len(every)
    assert "now / committed" in capsys.readouterr().out
    assert figures.main(["--results", str(file), "--output", str(tmp_path)]) == 0
    assert {f.name for f in tmp_path.glob("*.svg")} == {"noise.svg", "step.svg"}


def test_providers_take_turns():
    calls = []
    cell = Cell("noise", "pass", "in_place", "elements", 1, "cpu")
    providers = {name: lambda name=name: calls.append(name) for name in ("reference", "adazeta")}
    rows = harness.compare(cell, providers, Options(rounds=3))
    assert calls == ["reference", "adazeta"] * 4  # once before the clock starts
    assert {row["config"]["repeats"] for row in rows} == {3}


def test_the_time_limit_leaves_two_rounds():
    cell = Cell("noise", "pass", "in_place", "elements", 1, "cpu")
    rows = harness.compare(cell, {"adazeta": lambda: None}, Options(rounds=9, seconds=0))
    assert rows[0]["config"]["repeats"] == 2


def test_memory_is_measured_in_another_process():
    rows = memory.rows(Options(small=True, only="batch_4 inference"))
    check_rows(rows)
    assert {row["metric"] for row in rows} == {"peak", "peak_above_loading"}
    peak, above = (row["median"] for row in rows)
    assert 0 <= above < peak


@pytest.mark.parametrize("provider", memory.PROVIDERS)
def test_every_memory_provider_runs(provider):
    work = small_workload()
    memory.PROVIDERS[provider](work, work.batch(4, width=9))()


# Comparing


def row(provider, metric, value, **changes):
    cell = Cell("step", "adapters_all", "batch_16", "queries", 1, "cpu")
    return {**cell.row(provider, metric, "ms", [value], {}), **changes}


def test_a_loss_of_performance_shows():
    committed = [row("adazeta", "time", 10.0), row("floor", "time", 10.0)]
    lines, worse = compare.report(
        [row("adazeta", "time", 14.0), row("floor", "time", 14.0)], committed
    )
    assert worse == 1 and len(lines) == 2
    assert [line.endswith("WORSE") for line in lines] == [True, False]
    _, worse = compare.report(
        [row("adazeta", "speedup_over_reference", 1.0)],
        [row("adazeta", "speedup_over_reference", 2.0)],
    )
    assert worse == 1
    assert compare.report([row("adazeta", "time", 9.0)], committed)[1] == 0


def test_a_slower_machine_is_no_loss_of_performance():
    committed = [row("adazeta", "time", 10.0), row("adazeta", "speedup_over_floor", 0.9)]
    slower = row("adazeta", "time", 20.0)
    lines, worse = compare.report([slower, row("adazeta", "speedup_over_floor", 0.9)], committed)
    assert worse == 0 and "2.00" in lines[0]
    lines, worse = compare.report([slower, row("adazeta", "speedup_over_floor", 0.6)], committed)
    assert [line.endswith("WORSE") for line in lines] == [False, True] and worse == 1
    # Without a ratio the time itself is judged.
    assert compare.report([slower], committed)[1] == 1


def test_another_machine_class_is_not_compared():
    lines, worse = compare.report(
        [row("adazeta", "time", 14.0)], [row("adazeta", "time", 1.0, device="another")]
    )
    assert worse == 0
    assert "no committed result is of this machine class" in lines[0]


def test_targets_say_met_and_missed():
    rows = [
        row("adazeta", "time", 10.9),
        row("floor", "time", 10.0),
        row("adazeta", "speedup_over_reference", 1.4),
    ]
    lines = targets.report(rows)
    assert [line.split()[0] for line in lines] == ["met", "MISSED"]
    assert "1.09 <= 1.10" in lines[0]


def test_writing_replaces_whole_cells(tmp_path):
    file = tmp_path / "rows.json"
    write(file, [row("adazeta", "time", 1.0), row("gone", "time", 1.0)])
    write(file, [row("adazeta", "time", 2.0)])
    write(file, [row("adazeta", "time", 3.0, x_value=4)])
    assert [r["median"] for r in json.loads(file.read_text())] == [2.0, 3.0]


def test_seeds_are_counted_or_listed_and_never_none(capsys):
    assert seeds_of("2") == (0, 1) and seeds_of("0,") == (0,) and seeds_of("4,7") == (4, 7)
    with pytest.raises(SystemExit):
        main(["learning", "--seeds", "0"])
    assert "asks for no seed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["all", "kernels"])
def test_what_runs_alone_is_refused_beside_a_suite(name, capsys):
    with pytest.raises(SystemExit):
        main(["noise", name])
    assert f"{name} runs alone, not in noise {name}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_said(capsys):
    with pytest.raises(SystemExit):
        main(["gpu", "large", "--device", "cuda"])
    assert "sees no CUDA device" in capsys.readouterr().err


def test_every_suite_exists():
    from benchmarks.__main__ import suite

    assert set(ALL) <= set(SUITES)
    assert all(callable(suite(name)) for name in SUITES)


def test_a_step_of_a_large_model_has_time_and_memory():
    from benchmarks.suites import large

    rows = large.rows(OPTIONS)
    assert {row["provider"] for row in rows} == {
        "floor",
        "adazeta_adapters",
        "adazeta_adapters_graphs",
        "adazeta_stacked_adapters",
        "adazeta_stacked_adapters_graphs",
        "adazeta_full",
        "adazeta_full_graphs",
    }
    assert {row["metric"] for row in rows} == {"time", "peak_memory", "times_the_forwards"}
    assert all(row["median"] > 0 for row in rows)


def test_an_evaluation_has_a_row_with_a_graph_and_one_without():
    from benchmarks.suites import gpu

    rows = gpu.rows(dataclasses.replace(OPTIONS, only="gpu evaluation"))
    assert [row["provider"] for row in rows if row["metric"] == "time"] == [
        "floor", "adazeta", "adazeta_graphs",
    ]  # fmt: skip
