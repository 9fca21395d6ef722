"""The README's examples run as printed; only the hub is replaced by a local model."""

import re
from pathlib import Path

import transformers

from tests.tiny_models import tiny_llama, tiny_tokenizer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks():
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    (code,) = [block for block in blocks() if "optimizer.step" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    model = tiny_llama(layers=6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda name, dtype: model
    )
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda name: tiny_tokenizer()
    )
    exec(compile(code, "README.md", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10
    assert (tmp_path / "runs/example/adapter_model.safetensors").is_file()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_names_of_the_other_examples_exist():
    for block in blocks():
        for line in block.splitlines():
            if line.startswith("from adazeta"):
                exec(line, {})


def test_every_command_of_the_readme_exists():
    from adazeta.cli import _COMMANDS

    named = set(re.findall(r"adazeta (\w+) ?(?=[\w\"./-]|$)", README, flags=re.MULTILINE))
    assert set(_COMMANDS) <= named


def test_every_test_that_the_readme_names_exists():
    sources = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py")]
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(sources), flags=re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", README))
    assert named and named <= defined, named - defined
