"""The page on runs: whole, self-contained, and with all that the folder of a run holds."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adazeta.cli import main
from adazeta.report.gathering import gather, gather_all
from adazeta.report.page import page
from tests.helpers.commands import fails
from tests.helpers.paths import ROOT
from tests.helpers.runs import adapted, make

OLD = ROOT / "tests" / "data" / "old_runs"
VOID = {"meta", "input"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


class Page(HTMLParser):
    """Reads a page; fails where an element is not closed, and keeps its texts and figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[key] for key in ("href", "src", "srcset", "action") if key in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open:
            self.words.setdefault(self.open[-1], []).append(data.strip())


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of the trainer, in Python: no config.yaml."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    trainer = make(folder, adapted(), save_strategy="no", eval_strategy="steps", eval_steps=3)
    trainer.train()
    return folder


@pytest.fixture
def rewarded(tmp_path) -> Path:
    """What a run with rewards leaves, as files."""
    folder = tmp_path / "rewarded"
    folder.mkdir()
    history = [
        {"loss": -0.1 * s, "reward": 0.1 * s, "reward_std": 0.4, "eps": 0.1, "learning_rate": 0.01,
         "evaluations": 4 * s, "dropped_probes": s // 3, "epoch": s / 9, "step": s}
        for s in range(1, 5)
    ]  # fmt: skip
    history.append({"train_runtime": 65.0, "step": 4})
    history += [{"eval_reward": value, "eval_kl": value / 9, "eval_runtime": 2.0, "step": step}
                for step, value in ((2, 0.25), (4, 0.5))]  # fmt: skip
    lines(folder / "history.jsonl", history)
    attack = "<script>alert(1)</script>&<img src=http://example.com/x>"
    completions = [
        {"step": step, "prompt": prompt, "completion": f"{attack} {step}", "total": step / 8,
         "rewards": {"fun": step / 4, "length": None}}
        for step in (2, 4)
        for prompt in ("A film", attack)
    ]  # fmt: skip
    completions.append({"step": 4, "prompt": [{"role": "user", "content": "2 + 2?"}],
                        "completion": "4", "reward": 1.0, "before": "five",
                        "reward_before": 0.0})  # fmt: skip
    lines(folder / "completions.jsonl", completions)
    with (folder / "completions.jsonl").open("a") as file:
        file.write('{"step": 6, "prom')
    (folder / "config.yaml").write_text(
        f'model: base/tiny\nreward: "{attack}"\nmax_steps: 8\nseed: "42"\n'
    )
    results = {"test_reward": 0.5, "test_reward_interval": [0.4, 0.6], "test_accuracy": 0.75,
               "test_runtime": 1.0, "train_loss": -0.2}  # fmt: skip
    (folder / "all_results.json").write_text(json.dumps(results))
    (folder / "report.json").write_text(json.dumps({"test_accuracy_before": 0.5, "seed": 1}))
    return folder


def whole(text: str) -> Page:
    """Read a page and hold what every page must be."""
    assert text.startswith("<!DOCTYPE html>")
    found = Page(text)
    assert found.links == [] and "script" not in found.tags and "link" not in found.tags
    assert not re.search(r"url\(|@import|https?://(?!example)", text)
    assert "default-src 'none'" in text
    assert len(found.ids) == len(set(found.ids))
    assert 'content="width=device-width' in text and "prefers-color-scheme:dark" in text
    return found


def test_the_page_of_a_run_in_python(trained):
    found = whole(page([gather(trained)]))
    assert found.words["h1"] == ["trained"]
    assert found.words["figcaption"] == [
        "Loss", "Learning rate", "Spread of the projected gradient", "Projected gradient mean",
        *found.words["figcaption"][4:],
    ]  # fmt: skip
    # Each figure by steps and by evaluations.
    assert found.tags.count("svg") == 2 * found.tags.count("figure") > 6
    assert "Scale of the perturbation (eps)" in found.words["th"]  # constant, so in a table
    assert {"rule", "lr", "seed", "probes"} <= set(found.words["code"])
    facts = dict(zip(found.words["dt"], found.words["dd"], strict=True))
    assert facts["Method"] == "ZOAdam" and facts["Steps"] == "6" and facts["State"] == "finished"
    parameters = gather(trained).header.layout.parameters
    assert facts["Trained numbers"] == f"{sum(math.prod(p.shape) for p in parameters):,}"


def test_the_page_of_a_run_with_rewards(rewarded):
    text = page([gather(rewarded)])
    found = whole(text)
    assert found.words["figcaption"] == [
        "Reward", "Divergence from the base (KL, a token)", "Dropped probes",
    ]  # fmt: skip
    assert "The same at every step" in found.words["h3"]
    results = dict(zip(found.words["th"], found.words["td"], strict=False))
    assert results["Test reward"] == "0.5 (95%: 0.4 to 0.6)"
    assert results["Test accuracy, before training"] == "50.0%"
    assert results["Test accuracy"] == "75.0%"
    assert "A film" in found.words["p"] and "user: 2 + 2?" in found.words["p"]
    assert {"before", "step 2", "now (step 4)"} <= set(found.words["p"])
    assert "five" in found.words["p"] and "(fun +1.000, length none)" in found.words["span"]
    # What a file holds is a text on the page, never a part of it.
    assert "<script>alert(1)</script>&<img src=http://example.com/x> 4" in found.words["p"]
    changed = text[text.index("<h2>Settings") : text.index("settings at their defaults")]
    assert "max_steps" in changed and "reward" in changed
    assert "<code>seed</code>" not in changed  # "42", as by default
    assert "<code>seed</code>" in text[text.index("settings at their defaults") :]


@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir()))
def test_runs_of_earlier_versions_have_a_page(name):
    found = whole(page([gather(OLD / name)]))
    assert "Loss" in found.words["figcaption"]
    assert found.words["dd"][-1] == "finished"


def test_several_runs_share_axes_and_show_where_they_differ(trained, rewarded, tmp_path):
    other = tmp_path / "other" / "trained"
    shutil.copytree(trained, other)
    (other / "config.yaml").write_text("method: mezo\nlearning_rate: 1e-2\noutput_dir: x\n")
    shutil.copytree(rewarded, tmp_path / "again")
    (tmp_path / "again" / "config.yaml").write_text("method: mezo\nseed: 7\noutput_dir: y\n")
    runs = gather_all([trained, other, rewarded, tmp_path / "again"])
    assert [run.name for run in runs][1] == "other/trained" and len({r.name for r in runs}) == 4
    found = whole(page(runs))
    assert found.words["h1"] == ["4 runs compared"]
    assert {"Loss, training", "Loss, evaluation"} <= set(found.words["figcaption"])
    text = page(gather_all([other, tmp_path / "again"]))
    differing = text[text.index("Settings that differ") : text.index("Settings: ")]
    assert re.findall(r'<th scope="row">(\w+)</th>', differing) == ["learning_rate", "seed"]
    assert "<td>42</td><td>7</td>" in differing


def test_a_run_that_was_stopped_has_a_page(trained, tmp_path):
    folder = tmp_path / "stopped"
    folder.mkdir()
    log = (trained / "probes.log").read_bytes()
    (folder / "probes.log").write_bytes(log[:-5])
    (folder / "begin.json").write_text('{"max_steps": 100}')
    found = whole(page([gather(folder)]))
    assert "5 of 100" in found.words["dd"] and found.words["dd"][-1] == "not finished"
    assert "Loss" in found.words["figcaption"]


def test_results_of_the_run_before_are_not_taken_for_those_of_a_run_under_way(rewarded):
    entries = [{"loss": 1.0 / s, "step": s} for s in (1, 2, 3)]
    lines(rewarded / "history.jsonl", entries)
    (rewarded / "trainer_state.json").write_text('{"global_step": 60, "max_steps": 60}')
    (rewarded / "begin.json").write_text('{"global_step": 0, "max_steps": 80}')
    run = gather(rewarded)
    assert not run.finished and run.results == run.measured == {}
    assert {one.step for one in run.completions} == {0, 2}
    found = whole(page([run]))
    assert "3 of 80" in found.words["dd"] and "Results" not in found.words["h2"]
    assert sum("of a run that was here before" in text for text in found.words["p"]) == 2
    # Nor is a run finished that was, and then went on.
    lines(rewarded / "history.jsonl", [*entries, {"train_runtime": 1.0, "step": 3}])
    assert gather(rewarded).finished
    more = {"loss": 0.1, "step": 4}
    lines(rewarded / "history.jsonl", [*entries, {"train_runtime": 1.0, "step": 3}, more])
    assert not gather(rewarded).finished


def test_a_damaged_file_is_named_and_the_rest_is_shown(rewarded):
    (rewarded / "all_results.json").write_text("{")
    (rewarded / "probes.log").write_bytes(b"nonsense")
    (rewarded / "config.yaml").write_text("a: [")
    found = whole(page([gather(rewarded)]))
    problems = [text for text in found.words["p"] if "cannot be read" in text]
    assert [text.split()[1] for text in problems] == [
        "probes.log",
        "config.yaml",
        "all_results.json",
    ]
    assert "Reward" in found.words["figcaption"]


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    entries = [{"loss": v, "note": "x", "step": s} for s, v in enumerate((1.0, float("nan"), 3.0))]
    lines(tmp_path / "history.jsonl", [*entries, {"loss": float("inf"), "step": 3}])
    text = page([gather(tmp_path)])
    assert whole(text).words["figcaption"] == ["Loss"]
    assert not re.search(r'd="[^"]*(nan|inf)', text)


def test_the_command_writes_the_page(rewarded, trained, tmp_path, capsys, monkeypatch):
    assert main(["report", str(rewarded)]) == 0
    assert capsys.readouterr().out == f"wrote {rewarded / 'report.html'}\n"
    whole((rewarded / "report.html").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(rewarded), str(trained)]) == 0
    assert "2 runs compared" in Path("report.html").read_text()
    assert main(["report", str(trained), "--output", "new/a.html"]) == 0
    assert Path("new/a.html").is_file()


def test_what_is_no_run_is_refused_before_anything_is_written(tmp_path, rewarded, capsys):
    assert "there is no folder" in fails(capsys, "report", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no run (no history.jsonl" in fails(capsys, "report", tmp_path / "empty")
    assert "is given twice" in fails(capsys, "report", rewarded, f"{rewarded}/.")
    output = fails(capsys, "report", rewarded, "--output", tmp_path)
    assert "is a folder; name a file" in output
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.skipif(BROWSER is None, reason="no browser; the tests above read the page")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_scrolling_sideways(rewarded, trained, tmp_path, width):
    text = page(gather_all([rewarded, trained]))
    # A frame as wide as the screen, whose inside tells how wide it would like to be.
    probe = (
        "<script>onload=()=>{const d=frames[0].document,r=d.documentElement;"
        "const s=[...d.querySelectorAll('.by-steps svg')],b=s.map(e=>e.getBoundingClientRect());"
        "document.title=JSON.stringify({inner:r.clientWidth,wanted:r.scrollWidth,"
        "drawn:b.filter(q=>q.width>250&&q.height>100).length,figures:s.length,"
        "hidden:[...d.querySelectorAll('.by-evaluations')]"
        ".every(e=>getComputedStyle(e).display=='none')})}</script>"
    )
    (tmp_path / "page.html").write_text(text)
    frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (tmp_path / "probe.html").write_text(f"<!DOCTYPE html><body>{frame}{probe}</body>")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000",
        "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    told = json.loads(re.search("<title>(.*?)</title>", shown)[1].replace("&quot;", '"'))
    assert told["inner"] == width and told["wanted"] <= width
    assert told["drawn"] == told["figures"] > 5 and told["hidden"]
