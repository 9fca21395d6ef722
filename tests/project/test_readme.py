"""The README's examples run as printed; only the hub is replaced by a local model.

The names of the tests in docs/reliability.md are those of tests.
"""

import re

import torch
import transformers

from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

README = (ROOT / "README.md").read_text(encoding="utf-8")
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def blocks():
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    train, use = blocks()[:2]
    assert "optimizer.step" in train and "from_pretrained(model" in use
    assert len([line for line in train.splitlines() if line.strip()]) <= 15
    made = []

    def load(name, dtype):
        made.append(tiny_llama(layers=6))
        return made[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda name: tiny_tokenizer()
    )
    names = {}
    exec(compile(train, "README.md", "exec"), names)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10
    assert (tmp_path / "runs/example/adapter_model.safetensors").is_file()
    assert all(parameter.grad is None for parameter in made[0].parameters())
    exec(compile(use, "README.md", "exec"), names)
    assert names["model"] is made[1]
    trained, loaded = (model.state_dict() for model in made)
    assert trained.keys() == loaded.keys()
    assert all(torch.equal(trained[name], loaded[name]) for name in trained)
    assert capsys.readouterr().out.strip()
    assert names["answer"].shape[1] > names["prompt"]["input_ids"].shape[1]


def test_the_names_of_the_other_examples_exist():
    for block in blocks():
        for line in block.splitlines():
            if line.startswith("from adazeta"):
                exec(line, {})


def test_every_command_of_the_readme_exists():
    from adazeta.cli import _COMMANDS

    named = set(re.findall(r"adazeta (\w+) ?(?=[\w\"./-]|$)", README, flags=re.MULTILINE))
    assert set(_COMMANDS) <= named


def test_every_test_of_the_fault_table_exists():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(sources), flags=re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", RELIABILITY))
    assert named and named <= defined, named - defined
    faults = [line for line in RELIABILITY.splitlines() if line.startswith("| ")][1:]
    assert len(faults) > 40 and all("`test_" in line for line in faults)
