"""Rewards by name: only what the user names is loaded, and a mistake is told before any work."""

import sys

import pytest

from adazeta.rewards.loading import load_rewards

SOURCE = """
from dataclasses import dataclass
from beside import ONE

@dataclass
class Settings:
    scale: float = 2.0

def score(completions, **kwargs):
    return [Settings().scale * len(one) * ONE for one in completions]

def other(completions, **kwargs):
    return [1.0] * len(completions)

class Judge:
    @staticmethod
    def score(completions, **kwargs):
        return [3.0] * len(completions)

number = 5
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("ONE = 1\n")
    before = dict(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def test_a_function_of_a_file(folder):
    path = list(sys.path)
    specs = ["my_rewards.py:score", "my_rewards.py:other", "my_rewards.py:Judge.score"]
    rewards = load_rewards(specs, [1, 10, 100], folder=folder)
    assert rewards.names == ["score", "other", "score_2"]
    assert rewards(["p"], ["abc"]).total.tolist() == [316.0]
    assert rewards.functions[0].__module__ == rewards.functions[1].__module__
    assert sys.path == path and "my_rewards" not in sys.modules


def test_a_function_of_a_module_found_in_the_folder_or_installed(folder, monkeypatch):
    (folder / "pack").mkdir()
    (folder / "pack" / "inner.py").write_text("def f(completions): return [7.0]\n")
    rewards = load_rewards("pack.inner:f", folder=folder, timeout=60)
    assert rewards.timeout == 60 and rewards(["p"], ["x"]).total.tolist() == [7.0]
    monkeypatch.chdir(folder)
    assert load_rewards("my_rewards:other", folder=None).names == ["other"]
    (folder / "json.py").write_text("raise AssertionError\n")
    assert load_rewards("json.decoder:JSONDecoder", folder=folder).names == ["JSONDecoder"]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("exactmatch", ValueError, "unknown reward 'exactmatch'; did you mean 'exact_match'"),
        ("nothing", ValueError, "there are exact_match, f1, .* FILE.py:NAME"),
        ("my_rewards.py", ValueError, "names no function; write my_rewards.py:NAME"),
        ("my_rewards.py:skore", ValueError, "no function 'skore'; did you mean 'score'"),
        ("my_rewards.py:x", ValueError, "it has .*score, other"),
        ("my_rewards.py:number", ValueError, "is int, not a function"),
        ("no_file.py:score", FileNotFoundError, "there is no file .*no_file.py"),
        ("owner/model:score", ValueError, "neither a built-in reward nor a module 'owner/model'"),
        ("no.such.module:f", ValueError, "nor a module 'no.such.module'"),
        ("regx:a", ValueError, "did you mean 'regex'"),
        ("broken.py:f", ValueError, r"broken.py could not be loaded \(ZeroDivisionError: "),
        ("needs.py:f", ImportError, "no_such_package"),
        ("json:dumps", ValueError, "reward json is written json"),
        ("regex", ValueError, "reward regex is written regex:PATTERN"),
        ("regex:(", ValueError, "no regular expression"),
        ("f1:", ValueError, r"reward f1 is written f1\[:COLUMN\]"),
        ("length:0", ValueError, "'0' is no length"),
        ("length:10 miles", ValueError, "'10 miles' is no length"),
        ("classifier:model", ValueError, "classifier:MODEL:LABEL"),
    ],
)
def test_a_mistake_is_told(folder, spec, error, message):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "needs.py").write_text("import no_such_package\n")
    with pytest.raises(error, match=message):
        load_rewards(spec, folder=folder)


def test_weights_are_one_a_reward(folder):
    with pytest.raises(ValueError, match="1 weights for 2 reward functions"):
        load_rewards(["json", "regex:a"], [1], folder=folder)
