import json
from dataclasses import replace

import pytest

from adazeta.cli import main
from adazeta.methods import METHODS
from adazeta.protocols.cells import Bench
from adazeta.protocols.suites import load_suite, published_rows
from adazeta.protocols.table import as_markdown, table_of
from tests.helpers.commands import fails
from tests.helpers.field_tasks import KSHOT, SUPERGLUE, write_files, write_model

VALUES = {
    "max_steps": 2, "per_device_train_batch_size": 4, "rank": 2, "bottleneck": 4,
    "layers": "last:1", "eps": "1e-2", "learning_rate": 1e-2, "disable_tqdm": True,
    "use_cpu": True, "report_to": "none",
}  # fmt: skip
KINDS = ["roberta", "bert"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {kind: str(write_model(folder, kind)) for kind in ("opt", "gpt2", "t5", *KINDS)}


def bench_of(folder, suite, name, model, methods=("zo-adam",), seeds=(13,), **values):
    small = replace(load_suite(suite), train=4, dev=2, test=4, k=2)
    task = replace(small.tasks[name], dev=2)
    source = write_files(folder / "source", suite, name, task.test_split)
    return Bench(
        small, [task], list(methods), list(seeds), {**VALUES, "model": model, **values},
        folder / "out", str(source),
    )  # fmt: skip


def check(cell, task, steps=2):
    assert cell["steps"] == steps and cell["evaluations"] > 0
    assert set(cell["metrics"]) == set(task.metrics)
    assert all(-1 <= value <= 1 for value in cell["metrics"].values())
    assert cell["examples"]["train"] > 0 and cell["examples"]["test"] > 0


@pytest.mark.parametrize("name", SUPERGLUE)
def test_each_large_models_task_trains_and_is_tested(tmp_path, bases, name):
    bench = bench_of(tmp_path, "superglue", name, bases["opt"])
    (cell,) = bench.run(lambda line: None)
    check(cell, bench.tasks[0])


@pytest.mark.parametrize("name", KSHOT)
def test_each_k_shot_task_trains_and_is_tested(tmp_path, bases, name):
    kind = KINDS[list(KSHOT).index(name) % 2]
    bench = bench_of(tmp_path, "kshot", name, bases[kind])
    (cell,) = bench.run(lambda line: None)
    check(cell, bench.tasks[0])
    classes = len({str(row.get(bench.tasks[0].label_column)) for row in KSHOT[name]} - {"-1"})
    assert cell["examples"]["train"] == cell["examples"]["dev"] == 2 * classes


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("name", ["CB", "COPA", "SQuAD"])
def test_other_kinds_of_models_train_on_the_large_models_tasks(tmp_path, bases, kind, name):
    bench = bench_of(tmp_path, "superglue", name, bases[kind], methods=["zero-shot", "zo-adam"])
    untrained, trained = bench.run(lambda line: None)
    check(trained, bench.tasks[0])
    assert untrained["steps"] == 0 and set(untrained["metrics"]) == set(trained["metrics"])


def test_what_was_done_is_not_done_again(tmp_path, bases):
    options = {"methods": ["zero-shot", "zo-adam"], "seeds": [13, 21]}
    bench = bench_of(tmp_path, "kshot", "SST-2", bases["roberta"], **options)
    whole = bench.run(lambda line: None)
    kept = tmp_path / "out" / "SST-2" / "zo-adam-13.json"
    other = tmp_path / "out" / "SST-2" / "zo-adam-21.json"
    before = kept.stat().st_mtime_ns
    expected = json.loads(other.read_text())
    other.unlink()  # its run is done but was not written down
    again = bench.run(lambda line: None)
    assert kept.stat().st_mtime_ns == before
    assert again[:3] == whole[:3]
    same = ("metrics", "dev", "steps", "examples")
    assert {k: again[3][k] for k in same} == {k: expected[k] for k in same}


def test_a_folder_holds_one_setting(tmp_path, bases):
    bench_of(tmp_path, "kshot", "SST-2", bases["roberta"], methods=["zero-shot"]).run(len)
    other = bench_of(tmp_path, "kshot", "SST-2", bases["roberta"], max_steps=3)
    with pytest.raises(ValueError, match="max_steps=2, and now it is 3"):
        other.run(len)


def test_published_numbers_belong_to_tasks_and_methods_of_the_suites():
    for name, k in (("superglue", 0), ("kshot", 16), ("kshot", 512)):
        suite, rows = load_suite(name), published_rows(name, k)
        assert len(rows) > 2
        for row in rows:
            assert set(row["values"]) <= set(suite.tasks)
            assert all(0 < value < 100 for value in row["values"].values())
            assert "arXiv" in row["source"]
    assert published_rows("kshot", 64) == []


def test_a_table_tells_ours_from_what_is_published():
    cells = [
        {"task": "RTE", "method": "mezo", "seed": seed, "metric": "accuracy", "steps": 5,
         "metrics": {"accuracy": value}, "examples": {"test": 100}}
        for seed, value in ((13, 0.5), (21, 0.6))
    ]  # fmt: skip
    cells.append({**cells[0], "task": "SST2"})
    table = table_of(cells, published_rows("superglue", 0), model="tiny")
    ours, *published = table["rows"]
    assert ours["values"] == {"RTE": pytest.approx(55.0), "SST2": 50.0}
    assert ours["spread"]["RTE"] == pytest.approx(7.0710678)
    low, high = ours["interval"]["SST2"]
    assert low < 41 and high > 59
    assert {row["origin"] for row in published} == {"published"}
    text = as_markdown(table)
    lines = text.splitlines()
    assert lines[0] == "| model | method | from | RTE (accuracy) | SST2 (accuracy) |"
    assert "| tiny | mezo | here (2 seeds, 5 steps) | 55.0 ± 7.1 | 50.0 [40.4, 59.6] |" in lines
    assert "| OPT-13B | MeZO | published: MeZO, arXiv 2305.17333 | 66.1 | 91.4 |" in lines
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_the_command_makes_a_table(tmp_path, bases, capsys):
    source = write_files(tmp_path / "source", "kshot", "SST-2", "validation")
    write_files(tmp_path / "source", "kshot", "CoLA", "validation")
    flags = [f"--{key}={value}" for key, value in VALUES.items()]
    command = [
        "benchmark", "--suite", "kshot", "--model", bases["roberta"], "--tasks", "SST-2,CoLA",
        "--data_dir", str(source), "--seeds", "13", "--methods", "zero-shot", "mezo", "--k", "2",
        "--output_dir", str(tmp_path / "out"), *flags,
    ]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "kshot" / "table.md").read_text()
    assert text in printed
    assert "| mezo | here (1 seed, 2 steps) |" in text and "zero-shot" in text
    table = json.loads((tmp_path / "out" / "kshot" / "table.json").read_text())
    assert table["metrics"] == {"SST-2": "accuracy", "CoLA": "matthews"}
    assert main(command) == 0  # nothing is left to do


def test_the_command_refuses_what_it_does_not_know(tmp_path, bases, capsys):
    start = ["benchmark", "--model", bases["roberta"], "--output_dir", tmp_path]
    assert "no suite 'glue'" in fails(capsys, *start, "--suite", "glue")
    assert "no task 'SST2' in the suite kshot; did you mean 'SST-2'" in (
        fails(capsys, *start, "--suite", "kshot", "--tasks", "SST2")
    )
    assert "no method 'mezoo'; did you mean 'mezo'" in (
        fails(capsys, *start, "--suite", "kshot", "--methods", "mezoo")
    )
    assert "k=4 is for the suite kshot" in fails(capsys, *start, "--suite", "superglue", "--k", "4")
    assert "seeds must be whole numbers" in (
        fails(capsys, *start, "--suite", "kshot", "--seeds", "one")
    )
    assert "unknown setting 'max_stepz'" in (
        fails(capsys, *start, "--suite", "kshot", "--max_stepz", "4")
    )
    assert "no train.jsonl, .csv or .tsv" in (
        fails(capsys, *start, "--suite", "kshot", "--data_dir", tmp_path / "none")
    )
    assert "mpqa has no data set on the hub" in (
        fails(capsys, *start, "--suite", "kshot", "--tasks", "mpqa")
    )
    assert "mezo" in METHODS
