import copy
import json

import pytest

from adazeta import replay
from adazeta.recording.header import LogHeader
from adazeta.recording.identity import changed_settings, describe, fingerprint_of_state
from adazeta.recording.model_description import model_as_described
from adazeta.recording.probe_log import MAGIC, ProbeLog, frame
from adazeta.recording.replay import group_settings, optimizer_of
from adazeta.recording.step_record import LogError
from tests.helpers.old_runs import FOLDER, RUNS, base_of, trainer_of

GONE = object()


def data_of(name):
    return (FOLDER / name / "probes.log").read_bytes()


def header_of(data):
    size = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    return data[len(MAGIC) + 8 :][:size]


def as_written(header):
    return json.dumps(header.to_json(), sort_keys=True, separators=(",", ":")).encode()


def changed(name, place, value):
    """An old log with another value at a place of its header, ``value`` GONE for none."""
    data = data_of(name)
    text = header_of(data)
    values = json.loads(text)
    *outer, key = place.split(".")
    section = values
    for part in outer:
        section = section[part]
    if value is GONE:
        del section[key]
    else:
        section[key] = value
    rest = data[len(MAGIC) + 8 + len(text) :]
    return ProbeLog(MAGIC + frame(json.dumps(values).encode()) + rest)


@pytest.mark.parametrize("name", RUNS)
def test_a_header_comes_back_byte_for_byte(name):
    text = header_of(data_of(name))
    assert as_written(LogHeader.from_json(json.loads(text))) == text


@pytest.mark.parametrize("name", RUNS)
def test_a_new_run_writes_what_version_0_1_0_wrote(name, tmp_path):
    old = json.loads(header_of(data_of(name)))
    trainer = trainer_of(name, tmp_path)
    # What a run takes that does not say has changed since.
    trainer.args.distribution = old["layout"]["distribution"]
    header = describe(trainer.model, trainer.ready_optimizer(), 0).to_json()
    ours, theirs = (values["base"].get("adapters", {}) for values in (header, old))
    for name in ours.keys() - theirs.keys():
        del ours[name]  # settings of adapters that came later
    for values, adapters in ((header, ours), (old, theirs)):
        values.pop("adazeta")
        adapters.pop("adazeta_version", None)
    assert header == old


def test_what_an_early_header_lacks_is_not_made_up():
    values = {"format": 1, "seed": 5, "first_step": 2}
    header = LogHeader.from_json(values)
    assert header == LogHeader(seed=5, first_step=2)
    assert header.to_json() == values


@pytest.mark.parametrize(
    "place, value",
    [
        ("layout.direction", GONE),
        ("first_global_step", GONE),
        ("base.adapters", GONE),
        ("later", {"a": 1}),
        ("layout.later", 1),
        ("optimizer.later", 1),
        ("estimator.later", 1),
    ],
)
def test_a_log_without_an_earlier_key_or_with_a_later_one_replays(place, value):
    optimizer = replay(changed("adapters", place, value), base_of("adapters"))
    end = json.loads((FOLDER / "adapters" / "end.json").read_text())["state"]
    assert fingerprint_of_state(optimizer) == end


def test_a_setting_of_a_later_version_is_among_the_changed_ones():
    for place in ("optimizer.later", "estimator.later"):
        log = changed("adapters", place, 7)
        optimizer = optimizer_of(log.header, base_of("adapters"))
        assert f"{place} was 7 and is None" in changed_settings(log.header, optimizer)


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("optimizer", GONE, "no usable optimizer"),
        ("optimizer", [3], "no usable optimizer"),
        ("optimizer.class", GONE, "no usable optimizer"),
        ("optimizer.class", {}, "no usable optimizer"),
        ("optimizer.class", "Other", "written by the optimizer Other"),
        ("optimizer.groups", GONE, "no usable optimizer"),
        ("optimizer.groups", 5, "no usable optimizer"),
        ("optimizer.groups", [5], "no usable optimizer"),
        ("optimizer.groups", [{}], "no usable optimizer"),
        ("layout", GONE, "no usable optimizer"),
        ("layout", "x", "no usable optimizer"),
        ("layout.distribution", GONE, "no usable optimizer"),
        ("layout.direction", {"name": "other"}, "drawn by 'other': unknown"),
        ("layout.direction", 5, "no usable optimizer"),
        ("layout.parameters", 5, "trainable parameter 0 is absent there"),
        ("layout.parameters", [[1]], "trainable parameter 0 is absent there"),
        ("noise", 2, "noise version 2, this is 1"),
        ("noise", GONE, "noise version None"),
        ("first_step", 1, "step 0 follows step 0"),
        ("initial", GONE, "begins with other values"),
        ("first_global_step", "x", "'first_global_step' is 'x', not a number"),
        ("format", 2, "log format 2"),
    ],
)
def test_a_damaged_header_is_refused_by_replay(place, value, message):
    with pytest.raises(LogError, match=message):
        replay(changed("adapters", place, value), base_of("adapters"))


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("base", GONE, "does not describe its model"),
        ("base", 5, "does not describe its model"),
        ("base.dtype", GONE, "does not describe its model"),
        ("base.dtype", "int8", "does not name its base model"),
        ("base.base_model_name_or_path", None, "does not name its base model"),
        ("base.class", GONE, "does not describe its model"),
        ("base.class", "Other", "no model class 'Other'"),
        ("base.adapters", 5, "does not describe its model"),
    ],
)
def test_a_header_that_does_not_describe_a_model_is_refused(place, value, message, tmp_path):
    name = "sgd_bfloat16"
    known = changed(name, "base.base_model_name_or_path", "here").header.to_json()
    section, _, key = place.partition(".")
    values = copy.deepcopy(known)
    inner = values[section] if key else values
    if value is GONE:
        del inner[key or section]
    else:
        inner[key or section] = value
    with pytest.raises(LogError, match=message):
        model_as_described(LogHeader.from_json(values), tmp_path)


def test_the_groups_of_a_header_have_no_parameters():
    log = ProbeLog(data_of("adapters"))
    assert [group["weight_decay"] for group in group_settings(log.header)] == [0.1, 0.0]
    assert all("parameters" not in group for group in group_settings(log.header))
