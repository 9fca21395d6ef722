import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adazeta.adapters.config import TTAdapterConfig
from adazeta.models.arguments import ModelArguments
from adazeta.support.settings import (
    OneLineParser,
    add_flags,
    build,
    flag_values,
    read_yaml,
    settings_of,
)
from adazeta.support.yaml_values import dump_yaml, parse_yaml
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.label_words import Labels
from adazeta.training.arguments import ZOTrainingArguments

KINDS = (ModelArguments, TaskArguments, TTAdapterConfig, ZOTrainingArguments)
FIELDS = [(kind, name) for kind in KINDS for name in settings_of(kind)]
# Texts that YAML 1.1 takes for something else.
ODD = ["yes", "no", "on", "off", "y", "010", "1e-2", "1e3", "1:30", "2024-01-02", "0x1F", "1_000"]
ODD += ["true", "null", "~", "", "1", "1.0", "1.50", ".5", "+1", "-0", "[a]", "{a: b}", "c_attn"]
ODD += ["<<", "=", ".inf", "a: b", "# a", " a", "a\n", "&a", "*a", "!a", "'", '"', "好", "None"]
TEXT = st.sampled_from(ODD) | st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False)
ANY = st.none() | st.booleans() | NUMBERS | st.sampled_from(["a", "c_attn", "cosine"])


def parsed(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Write settings as YAML, as a run does, and read them."""
    path = folder / "config.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    return read_yaml(path)


def one_field(kind: type, name: str) -> type:
    """A dataclass with the field alone, and without the checks of the whole."""
    hint = get_type_hints(kind)[name]
    return dataclasses.make_dataclass("OneField", [(name, hint, dataclasses.field(default=None))])


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Python values that a field takes."""
    from adazeta.support.settings import _members

    kinds: list[st.SearchStrategy[Any]] = []
    for member in _members(hint):
        text = repr(member)
        if member is type(None):
            kinds.append(st.none())
        elif member is str:
            kinds.append(TEXT)
        elif member is bool:
            kinds.append(st.booleans())
        elif member is int:
            kinds.append(st.integers())
        elif member is float:
            kinds.append(NUMBERS)
        elif isinstance(member, type) and issubclass(member, Enum):
            kinds.append(st.sampled_from([one.value for one in member]))
        elif text.startswith("list[int]"):
            kinds.append(st.lists(st.integers(), max_size=3))
        elif text.startswith("list[str]"):
            kinds.append(st.lists(TEXT, max_size=3))
        elif text.startswith("dict[int"):
            kinds.append(st.dictionaries(st.integers(), st.lists(st.integers(), max_size=2)))
        elif text.startswith("dict[str, bool]"):
            kinds.append(st.dictionaries(TEXT, st.booleans(), max_size=2))
        elif text.startswith(("dict", "<class 'dict'>")):
            kinds.append(st.dictionaries(st.sampled_from(["a", "b"]), ANY, max_size=2))
    return st.one_of(kinds)


@pytest.mark.parametrize(
    ("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_setting_means_in_yaml_what_it_means_in_python(tmp_path, kind, name):
    hint = get_type_hints(kind)[name]
    if name in ("label_words", "parallelism_config", "trackio_static_space_id"):
        return  # the first has a test of its own, the others cannot be written in YAML

    @settings(max_examples=25)
    @given(values_of(hint))
    def check(value):
        found = getattr(build(one_field(kind, name), parsed(tmp_path, {name: value})), name)
        # Text that reads as a number or a truth value is one, where the field can be one.
        other = getattr(build(one_field(kind, name), {name: value}), name)
        assert found == other and type(found) is type(other)
        if not isinstance(value, str):
            # An integer where a float may stand is the float next to it.
            assert found == (float(value) if type(found) is float else value)

    check()


@given(st.dictionaries(TEXT.filter(str.strip) | st.integers() | st.booleans(), TEXT, max_size=4))
def test_labels_and_their_words_are_the_same_in_yaml(tmp_path, words):
    found = build(TaskArguments, parsed(tmp_path, {"label_words": words})).label_words
    assert found == words
    assert [*map(type, found)] == [*map(type, sorted(words, key=list(found).index))]
    listed = list(words.values())
    found = build(TaskArguments, parsed(tmp_path, {"label_words": listed})).label_words
    assert found == listed


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("{yes: good, no: bad}", {"yes": "good", "no": "bad"}),
        ("{On: good, off: bad}", {"On": "good", "off": "bad"}),
        ("{0: no, 1: yes}", {0: "no", 1: "yes"}),
        ("[no, yes]", ["no", "yes"]),
        ("{01: a, 10: b}", {"01": "a", 10: "b"}),
        ("{010: a, 0x1F: b}", {"010": "a", "0x1F": "b"}),
        ("{1.50: a, 2.5: b}", {"1.50": "a", 2.5: "b"}),
        ("{1e3: a, 1_000: b}", {"1e3": "a", "1_000": "b"}),
        ("{2024-01-02: a, 12:30: b}", {"2024-01-02": "a", "12:30": "b"}),
        ("{true: a, False: b}", {True: "a", False: "b"}),
        ("{+1: a, -1: b}", {"+1": "a", -1: "b"}),
    ],
)
def test_label_words_are_read_as_they_look(tmp_path, written, meant):
    path = tmp_path / "c.yaml"
    path.write_text(f"label_words: {written}\n")
    found = build(TaskArguments, read_yaml(path)).label_words
    assert found == meant and repr(found) == repr(meant)
    assert flag_values({"label_words": written}, [TaskArguments])["label_words"] == meant
    # What a run writes into its folder reads the same again.
    assert parsed(tmp_path, {"label_words": found})["label_words"] == meant


@pytest.mark.parametrize(
    ("line", "kind", "meant"),
    [
        ("learning_rate: 1e-2", ZOTrainingArguments, 0.01),
        ("learning_rate: 1.0e-06", ZOTrainingArguments, 1e-6),
        ("max_steps: 1e3", ZOTrainingArguments, 1000),
        ("seed: 010", ZOTrainingArguments, 10),
        ("use_cpu: yes", ZOTrainingArguments, True),
        ("one_sided: off", ZOTrainingArguments, False),
        ("save_strategy: no", ZOTrainingArguments, "no"),
        ("run_name: 2024-01-02", ZOTrainingArguments, "2024-01-02"),
        ("run_name: 1.50", ZOTrainingArguments, "1.50"),
        ("cache_trunk_folder: no", ZOTrainingArguments, "no"),
        ("method_settings: {momentum: 1e-2}", ZOTrainingArguments, {"momentum": 0.01}),
        ("lr_scheduler_kwargs: {a: [1e-6, x]}", ZOTrainingArguments, {"a": [1e-6, "x"]}),
        ("target_modules: [c_attn]", TTAdapterConfig, ["c_attn"]),
        ("target_modules: c_attn", TTAdapterConfig, "c_attn"),
        ("target_modules: '[qk]_proj'", TTAdapterConfig, "[qk]_proj"),
        ("target_modules: ['null']", TTAdapterConfig, ["null"]),
        ("modules_to_save: [lm_head]", TTAdapterConfig, ["lm_head"]),
        ("rank: [3]", TTAdapterConfig, [3]),
        ("rank: 3", TTAdapterConfig, 3),
        ("layers: [0]", TTAdapterConfig, [0]),
        ("layers: null", TTAdapterConfig, None),
        ("layers: last:2", TTAdapterConfig, "last:2"),
        ("modes: {64: ['8', 8], '32': [4, 8]}", TTAdapterConfig, {64: [8, 8], 32: [4, 8]}),
        ("completion: 'null'", TaskArguments, "null"),
        ("completion:", TaskArguments, None),
        ("label_column: on", TaskArguments, "on"),
    ],
)
def test_settings_are_read_as_they_look(tmp_path, line, kind, meant):
    path = tmp_path / "c.yaml"
    path.write_text(f"{line}\n")
    name = line.partition(":")[0]
    found = getattr(build(one_field(kind, name), read_yaml(path)), name)
    assert found == meant
    assert isinstance(found, Enum) or repr(found) == repr(meant)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("template: null", "template must be str, got None; leave the key out for the default"),
        ("weight_decay:", "weight_decay must be float, got None; leave the key out"),
        ("max_steps: 2.5", "max_steps must be int, got 2.5"),
        ("max_steps: true", "max_steps must be int, got True"),
        ("use_cpu: maybe", "use_cpu must be bool, got 'maybe'"),
        (
            "modules_to_save: lm_head",
            r"modules_to_save must be list\[str\], .* written \[lm_head\]",
        ),
        ("target_modules: {a: b}", "target_modules must be str or list"),
        ("label_words: good", r"label_words must be dict\[.*\] or list\[.*\], got 'good'"),
        ("rank: [2, null]", "rank must be int"),
        ("modes: {wide: [8]}", r"modes must be dict\[int, list\[int\]\], got"),
        ("rank: 2\nrank: 3", "the key 'rank' stands twice"),
        ("label_words: {1: a, 1: b}", "the key 1 stands twice"),
        ("label_words: {1: a, true: b}", "the key True stands twice"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, line, message):
    path = tmp_path / "c.yaml"
    path.write_text(f"{line}\n")
    name = line.partition(":")[0]
    kind = next(kind for kind in KINDS if name in settings_of(kind))
    with pytest.raises(ValueError, match=message):
        build(one_field(kind, name), read_yaml(path))


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["--target_modules", "c_attn"], "c_attn"),
        (["--target_modules", "[c_attn]"], ["c_attn"]),
        (["--target_modules", "[qk]_proj"], "[qk]_proj"),
        (["--target_modules", "q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["--modules_to_save", "lm_head"], ["lm_head"]),
        (["--modules_to_save", "null"], None),
        (["--rank", "3"], 3),
        (["--rank", "[3]"], [3]),
        (["--rank", "3", "4"], [3, 4]),
        (["--layers", "null"], None),
        (["--layers", "1", "2"], [1, 2]),
        (["--modes", "{64: [8, 8]}"], {64: [8, 8]}),
        (["--scale", "1e-1"], 0.1),
        (["--bias", "no"], False),
        (["--bias"], True),
    ],
)
def test_flags_mean_what_they_mean_in_yaml_and_in_python(tmp_path, flags, meant):
    parser = OneLineParser()
    add_flags(parser, TTAdapterConfig, "adapters")
    given = flag_values(vars(parser.parse_args(flags)), [TTAdapterConfig])
    name = flags[0].lstrip("-")
    found = getattr(build(TTAdapterConfig, given), name)
    assert found == meant and type(found) is type(meant)
    # A run writes its flags into config.yaml.
    assert getattr(build(TTAdapterConfig, parsed(tmp_path, given)), name) == meant


def test_labels_of_yaml_are_those_of_data_written_alike():
    for written in ("yes", "true", "010", "1.50", "2024-01-02", "1e3", "-1", "1.0"):
        (key,) = parse_yaml(f"{{{written}: word}}")
        assert written in Labels([key, "other"])
