"""Whatever stands in a file, it is read or refused with an error that names the file."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import CONFIG_NAME, WEIGHTS_NAME, load_config, save_pretrained
from adazeta.models.arguments import ModelArguments
from adazeta.recording.folder import GENERATORS_NAME, STATE_NAME
from adazeta.recording.history import read_history
from adazeta.recording.probe_log import MAGIC, ProbeLog, frame
from adazeta.recording.snapshot import belongs_to, read_snapshot
from adazeta.recording.state_files import SnapshotError, restore_state
from adazeta.support.files import read_object
from adazeta.support.settings import build, check_keys, read_yaml, settings_of
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.records import load_records
from adazeta.training.arguments import ZOTrainingArguments
from adazeta.training.reproducible import restore_generators
from tests.helpers.commands import fails
from tests.helpers.tiny_models import tiny_llama

KINDS = (ModelArguments, TaskArguments, TTAdapterConfig, ZOTrainingArguments)
NAMES = sorted({name for kind in KINDS for name in settings_of(kind)})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
HEADER = b'{"format": 1, "seed": 1, "first_step": 0}'
FILES = st.binary(max_size=200) | st.text(max_size=200).map(str.encode)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(FILES)
@example(b"\x80")
@example(b"[" * 10_000)
@example(b"a: 2001-99-99")
@example(b"? {a: 1}\n: b")
def test_any_configuration_is_a_mapping_or_refused(tmp_path, data):
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    try:
        values = read_yaml(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(key, str) for key in values)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=5))
def test_any_settings_become_arguments_or_are_refused(values):
    try:
        check_keys(values, NAMES, "the test")
        for kind in KINDS[:2]:
            build(kind, values)
    except ValueError as error:
        assert any(key in str(error) or repr(key) in str(error) for key in values)


@given(FILES)
def test_any_json_file_is_an_object_or_refused(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    try:
        assert isinstance(read_object(path), dict)
    except ValueError as error:
        assert str(path) in str(error)


@given(FILES, st.sampled_from([".jsonl", ".csv", ".tsv"]))
def test_any_data_file_holds_records_or_is_refused(tmp_path, data, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(data)
    try:
        records = load_records(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert records and all(isinstance(record, dict) for record in records)


@given(JSON_VALUES)
def test_any_log_header_is_read_or_refused(header):
    try:
        log = ProbeLog(MAGIC + frame(json.dumps(header).encode()))
    except ValueError:
        return
    assert len(log) == 0


@settings(max_examples=40)
@given(JSON_VALUES | st.fixed_dictionaries({"format": st.just(1), "files": JSON_VALUES}))
def test_any_marker_is_a_snapshot_or_refused(tmp_path, marker):
    (tmp_path / STATE_NAME).write_text(json.dumps(marker))
    with pytest.raises(SnapshotError, match=str(tmp_path)):
        read_snapshot(tmp_path)
    assert not belongs_to(tmp_path, ProbeLog(MAGIC + frame(HEADER)))


@given(JSON_VALUES)
def test_any_state_tree_is_restored_or_refused(tree):
    try:
        restore_state(tree, {})
    except (ValueError, TypeError):
        pass


@given(FILES)
def test_any_history_and_any_generators_are_read(tmp_path, data):
    (tmp_path / GENERATORS_NAME).write_bytes(data)
    assert restore_generators(tmp_path / GENERATORS_NAME, (0, 1)) is None
    (tmp_path / "history.jsonl").write_bytes(data)
    assert all(isinstance(entry, dict) for entry in read_history(tmp_path / "history.jsonl"))


def test_damaged_adapters_are_named(tmp_path, capsys):
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(rank=2, bottleneck=8))
    save_pretrained(model, tmp_path)
    (tmp_path / "task.json").write_text('{"type": ')
    assert "task.json is damaged" in fails(capsys, "eval", tmp_path, "--data", "x.jsonl")
    weights = (tmp_path / WEIGHTS_NAME).read_bytes()
    for cut in (0, 5, len(weights) // 2):
        (tmp_path / WEIGHTS_NAME).write_bytes(weights[:cut])
        from adazeta import from_pretrained

        with pytest.raises(ValueError, match=f"{WEIGHTS_NAME} is damaged .*adazeta replay"):
            from_pretrained(tiny_llama(), tmp_path)
    (tmp_path / CONFIG_NAME).write_text("[1]")
    with pytest.raises(ValueError, match=f"{CONFIG_NAME} is damaged"):
        load_config(tmp_path)
