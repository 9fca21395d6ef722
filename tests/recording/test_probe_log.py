import errno
import json
import math
import os
import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from adazeta.estimation.probes import Probes
from adazeta.recording.header import LogHeader
from adazeta.recording.probe_log import MAGIC, LogWriter, ProbeLog, frame, read_log
from adazeta.recording.step_record import LogError, StepRecord, decode, encode
from adazeta.support.seeds import derive_seed

SEED = 11
HEADER = LogHeader(seed=SEED, first_step=0)


def grid(step, queries, columns=1, keep=None, order=list):
    seeds = [derive_seed(SEED, step, q, c) for q in range(queries) for c in range(columns)]
    return tuple(order(s for i, s in enumerate(seeds) if keep is None or i in keep))


def record(step=0, seeds=None, **fields):
    seeds = grid(step, 2) if seeds is None else seeds
    values = {
        "epoch": 0.5, "loss": 1.25, "eps": 1e-2, "evaluations": 4, "queries": 2, "dropped": 0,
        "rates": (1e-3,), "coefficients": tuple(float(k) for k in range(len(seeds))), **fields,
    }  # fmt: skip
    return StepRecord(step=step, seeds=seeds, **values)


def written(path, count=3, header=HEADER):
    writer = LogWriter.create(path, header)
    for step in range(count):
        writer.append(record(step))
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    "given, size",
    [
        (record(7, grid(7, 2)), 70),
        (record(7, grid(7, 2, order=sorted)), 70),
        (record(7, grid(7, 2, keep={1}), dropped=1), 67),
        (record(7, grid(7, 3, 5, keep={0, 4, 9, 14}, order=sorted), queries=3, dropped=11), 80),
        (record(7, (), dropped=2, loss=float("inf")), 63),
        (record(7, (5, 2**63 + 1)), 86),
        (record(7, (9, 9, 4)), 98),
        (record(7, rates=(1e-3, 0.5), changes={"1": {"betas": [0.9, 0.5]}}), None),
    ],
    ids=["grid", "sorted", "masked", "examples", "none", "explicit", "repeated", "changes"],
)
def test_a_record_comes_back_as_it_was(given, size):
    payload = encode(given, SEED)
    assert decode(payload, SEED) == given
    assert size is None or len(payload) == size


@given(
    st.integers(0, 2**40), st.integers(0, 4), st.integers(1, 4), st.data(),
    st.lists(st.floats(width=32, allow_nan=False), max_size=40),
)  # fmt: skip
def test_any_record_comes_back_as_it_was(step, queries, columns, data, values):
    cells = queries * columns
    keep = data.draw(st.sets(st.integers(0, max(cells - 1, 0)), max_size=cells))
    order = data.draw(st.sampled_from([list, sorted, lambda s: list(s)[::-1]]))
    seeds = grid(step, queries, columns, keep, order)
    values = (values + [1.0] * len(seeds))[: len(seeds)]
    given = record(
        step, seeds, coefficients=tuple(values), queries=queries, dropped=cells - len(seeds)
    )
    assert decode(encode(given, SEED), SEED) == given


def test_a_record_of_probes_gives_the_probes_back():
    seeds = torch.tensor([3, -1, -(2**63), 2**63 - 1])
    coefficients = torch.tensor([0.1, -2.0, 0.0, 1e-30])
    probes = Probes(seeds, coefficients, coefficients, 0.5, 8, 4, dropped=1)
    made = StepRecord.of(probes, step=2, epoch=0.5, eps=1e-2, rates=[1e-3], changes={})
    assert made.seeds == (3, 2**64 - 1, 2**63, 2**63 - 1)
    again = decode(encode(made, SEED), SEED)
    assert again == made
    found = again.probes(torch.device("cpu"))
    assert torch.equal(found.seeds, seeds) and torch.equal(found.coefficients, coefficients)
    assert (found.loss, found.evaluations, found.queries, found.dropped) == (0.5, 8, 4, 1)


def test_ten_thousand_steps_stay_below_two_megabytes(tmp_path):
    # As the trainer writes them, with two groups of parameters and a header of 400 tensors.
    parameters = [[f"model.layers.{k}.mlp.down_proj.adapter", [8, 8], "float32", k] for k in
                  range(400)]  # fmt: skip
    size = len(frame(json.dumps({**HEADER.to_json(), "parameters": parameters}).encode()))
    for step in range(10_000):
        queries = 20  # the cap of the paper's schedule
        one = record(step, grid(step, queries), queries=queries, rates=(1e-3, 1e-3))
        size += len(frame(encode(one, SEED)))
    assert size < 2_000_000


def test_reads_back_what_was_appended(tmp_path):
    data = written(tmp_path / "log")
    log = read_log(tmp_path / "log")
    assert list(log) == [record(step) for step in range(3)]
    assert (len(log), log.size, log.torn, log.next_step) == (3, len(data), 0, 3)
    assert ProbeLog(log.prefix(2)).place == (2, log.end_of(2), log.checksum(2))
    writer = LogWriter(log)
    assert writer.place == log.place
    writer.append(record(3))
    writer.close()
    again = read_log(tmp_path / "log")
    assert again.place == writer.place and len(again) == 4


def test_a_torn_record_is_cut_off_wherever_it_was_torn(tmp_path):
    path = tmp_path / "log"
    data = written(path)
    two = ProbeLog(data).end_of(2)
    for end in range(two, len(data)):
        for tail in (b"", b"\0" * 7):
            path.write_bytes(data[:end] + tail)
            log = read_log(path)
            assert len(log) == 2 and log.torn == end - two + len(tail)
            writer = LogWriter(log)
            writer.append(record(2))
            writer.close()
            assert path.read_bytes() == data


def test_damage_in_the_middle_names_the_byte_and_the_last_good_step(tmp_path):
    path = tmp_path / "log"
    data = written(path, 4)
    begin, end = ProbeLog(data).end_of(2), ProbeLog(data).end_of(3)
    for at in range(begin, end):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        with pytest.raises(LogError, match=f"byte {begin} and goes on.*last good step is 1"):
            read_log(path)
    path.write_bytes(data[:begin] + data[end:])  # a record is missing
    with pytest.raises(LogError, match=f"byte {begin}: step 3 follows step 1"):
        read_log(path)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a probe log"),
        (b"PK\3\4 something else", "not a probe log"),
        (MAGIC, "damaged header"),
        (MAGIC + frame(b"{}")[:-1], "damaged header"),
        (MAGIC + frame(b"no json"), "not JSON"),
        (MAGIC + frame(b"[" * 100_000), "not JSON"),
        (MAGIC + frame(b"[1]"), "without a format"),
        (MAGIC + frame(b'{"format": 9}'), "log format 9"),
        (MAGIC + frame(b'{"format": 1, "seed": "x", "first_step": 0}'), "'seed' is 'x'"),
        (MAGIC + frame(b'{"format": 1, "seed": 1}'), "'first_step' is None"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, data, message):
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(LogError, match=message):
        read_log(tmp_path / "log")


@given(st.binary(max_size=300))
@example(struct.pack("<BQdddIIIIBI", 4, 0, 0, 0, 0, 0, 2**31, 2**31, 0, 0, 2**31))
@example(struct.pack("<BQdddIIIIBI", 0, 0, 0, 0, 0, 0, 2**31, 2**31, 0, 0, 0))
@example(struct.pack("<BQdddIIIIBI", 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) + b"[" * 100_000)
@example(struct.pack("<BQdddIIIIBI", 2, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0))
def test_any_payload_is_a_record_or_refused(payload):
    try:
        found = decode(payload, SEED)
    except LogError:
        return
    assert len(found.seeds) == len(found.coefficients)
    again = decode(encode(found, SEED), SEED)
    assert str(again.seeds) == str(found.seeds)


@given(st.binary(max_size=200), st.integers(0, 400), st.booleans(), st.booleans())
def test_any_file_is_a_log_or_refused(noise, place, framed, keep):
    data = MAGIC + frame(json.dumps(HEADER.to_json()).encode())
    data += b"".join(frame(encode(record(step), SEED)) for step in range(3))
    place = min(place, len(data))
    noise = frame(noise) if framed else noise
    data = data[:place] + noise + (data[place:] if keep else b"")
    try:
        log = ProbeLog(data)
        records = list(log)
    except LogError:
        return
    assert [r.step for r in records] == list(range(len(records)))
    assert log.size + log.torn == len(data)


@pytest.mark.parametrize("where", ["pwrite", "fsync"])
def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch, where):
    path = tmp_path / "log"
    data = written(path)
    writer = LogWriter(read_log(path))
    real = os.pwrite

    def full(handle, *args):
        if where == "pwrite":
            real(handle, args[0][:9], args[1])  # some bytes still fit
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, where, full)
        with pytest.raises(OSError, match="step 3 could not be logged.*free some space") as caught:
            writer.append(record(3))
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert path.read_bytes() == data
    writer.append(record(3))
    writer.close()
    assert len(read_log(path)) == 4


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda handle, data, at: real(handle, data[:5], at))
        data = written(tmp_path / "log")
    assert data == written(tmp_path / "other")


def test_a_loss_that_is_not_finite_is_kept(tmp_path):
    lost = record(0, (), dropped=2, loss=math.nan)
    assert math.isnan(decode(encode(lost, SEED), SEED).loss)
