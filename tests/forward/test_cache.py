import logging
import os
import subprocess
import sys

import pytest
import torch

from adazeta.forward.cache import open_cache
from adazeta.forward.cache.base import GIB, MemoryCache
from adazeta.forward.cache.disk import DiskCache
from adazeta.forward.fingerprint import fingerprint, frozen_tensors, versions
from tests.helpers.tiny_models import tiny_bert_mlm, tiny_llama

KINDS = ["memory", "disk"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]


def opened(kind, folder, limit=1.0, name="a" * 64):
    return open_cache(kind, name, limit=limit, folder=folder)


def some(seed=0, rows=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {"hidden": torch.randn(rows, 7, generator=generator).mul(100).to(dtype)}


def files(folder):
    return sorted(folder.rglob("*.states"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gives_back_the_bits_that_were_put(kind, dtype, tmp_path):
    cache = opened(kind, tmp_path)
    wide = some(rows=11, dtype=dtype)["hidden"]
    tensors = {
        "wide": wide,
        "slice": wide[1::3, 2:5],
        "scalar": wide[0, 0],
        "empty": wide[:0],
        "one": wide[:1, :1],
    }
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    assert cache.get(b"k") is None and cache.put(b"k", tensors)
    wide.zero_()
    found = cache.get(b"k")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor)
    assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_bits_of_nan_and_negative_zero(kind, tmp_path):
    cache = opened(kind, tmp_path)
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-42])
    cache.put(b"", {"odd": odd})
    assert torch.equal(cache.get(b"")["odd"].view(torch.int32), odd.view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_cache_keeps_what_it_has_and_says_so_once(kind, tmp_path, caplog):
    cache = opened(kind, tmp_path, limit=4000 / GIB)
    with caplog.at_level(logging.WARNING):
        kept = [cache.put(bytes([k]), some(k, rows=32)) for k in range(8)]
    assert kept[0] and not kept[-1] and sorted(kept, reverse=True) == kept
    assert [cache.get(bytes([k])) is not None for k in range(8)] == kept
    assert len(caplog.records) == 1 and "full" in caplog.text
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 4000


def test_another_run_finds_it_and_another_computation_does_not(tmp_path):
    first = opened("disk", tmp_path)
    for k in range(20):
        first.put(b"%d" % k, some(k))
    first.close()
    again = opened("disk", tmp_path)
    for k in range(20):
        assert torch.equal(again.get(b"%d" % k)["hidden"], some(k)["hidden"])
    assert len(files(tmp_path)) == 1  # few files, not one an example
    assert opened("disk", tmp_path, name="b" * 64).get(b"1") is None


def test_a_torn_record_is_passed_over_wherever_it_was_torn(tmp_path):
    cache = opened("disk", tmp_path)
    cache.put(b"whole", some(1))
    (path,) = files(tmp_path)
    whole = path.stat().st_size
    cache.put(b"torn", some(2))
    cache.close()
    data = path.read_bytes()
    for end in [*range(whole, len(data), 13), len(data) - 1]:
        path.write_bytes(data[:end])
        again = opened("disk", tmp_path)
        assert torch.equal(again.get(b"whole")["hidden"], some(1)["hidden"])
        assert again.get(b"torn") is None
        again.close()
    again = opened("disk", tmp_path)
    again.put(b"torn", some(2))
    assert torch.equal(opened("disk", tmp_path).get(b"torn")["hidden"], some(2)["hidden"])


def test_a_record_whose_bytes_were_lost_counts_as_absent(tmp_path):
    cache = opened("disk", tmp_path)
    cache.put(b"lost", some(1))
    (path,) = files(tmp_path)
    start = path.stat().st_size
    cache.put(b"kept", some(2))
    cache.close()
    data = bytearray(path.read_bytes())
    for place in (start - 1 - 16, start // 2, 56):  # in the data and in the description
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(broken)
        again = opened("disk", tmp_path)
        assert again.get(b"lost") is None and again.get(b"kept") is not None
        assert again.put(b"lost", some(1)) and again.get(b"lost") is not None
        again.close()
        [other.unlink() for other in files(tmp_path) if other != path]
    path.write_bytes(b"no cache at all " * 40)
    assert opened("disk", tmp_path).get(b"kept") is None


def test_two_at_once_see_what_the_other_adds(tmp_path):
    one, two = opened("disk", tmp_path), opened("disk", tmp_path)
    for k in range(10):
        (one if k % 2 else two).put(b"%d" % k, some(k))
    for cache in (one, two):
        for k in range(10):
            assert torch.equal(cache.get(b"%d" % k)["hidden"], some(k)["hidden"])


WRITER = """
import sys, torch
from adazeta.forward.cache import open_cache
cache = open_cache("disk", "a" * 64, limit=1, folder=sys.argv[1])
for k in range(200):
    cache.put(b"%d" % k, {"x": torch.full((k,), float(k))})
    found = cache.get(b"%d" % (k * 7 % 200))
    assert found is None or torch.equal(found["x"], torch.full_like(found["x"], k * 7 % 200))
"""


def test_two_processes_do_not_corrupt_each_other(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=os.getcwd())
        for _ in range(2)
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    cache = opened("disk", tmp_path)
    assert all(torch.equal(cache.get(b"%d" % k)["x"], torch.full((k,), k)) for k in range(200))
    assert 1 <= len(files(tmp_path)) <= 2


def test_a_forked_process_writes_its_own_file(tmp_path):
    cache = opened("disk", tmp_path)
    cache.put(b"parent", some(1))
    child = os.fork()
    if child == 0:
        try:
            cache.put(b"child", some(2))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    cache.put(b"later", some(3))
    for seed, key in enumerate([b"parent", b"child", b"later"], start=1):
        assert torch.equal(cache.get(key)["hidden"], some(seed)["hidden"])


def test_room_is_made_from_computations_that_nobody_uses(tmp_path):
    limit = 6000 / GIB
    old, used = opened("disk", tmp_path, limit, "1" * 64), opened("disk", tmp_path, limit, "2" * 64)
    old.put(b"x", some(rows=64))
    used.put(b"x", some(rows=64))
    old.close()
    now = opened("disk", tmp_path, limit, "3" * 64)
    assert now.put(b"x", some(rows=64)) and now.put(b"y", some(rows=64))
    assert used.get(b"x") is not None and not (tmp_path / ("1" * 64)).exists()
    assert not now.put(b"z", some(rows=64))  # what is in use stays


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="another folder"):
        opened("disk", tmp_path / "file")


def test_a_failing_disk_ends_the_caching_not_the_run(tmp_path, monkeypatch, caplog):
    cache = opened("disk", tmp_path)
    cache.put(b"a", some(1))
    written = []

    def full(descriptor, data):
        if written:
            raise OSError(28, "No space left on device")
        written.append(real(descriptor, data[:50]))
        return 50

    real = os.write
    monkeypatch.setattr(os, "write", full)
    assert not cache.put(b"b", some(2))
    monkeypatch.undo()
    assert "No space left" in caplog.text and not cache.put(b"c", some(3))
    again = opened("disk", tmp_path)
    assert again.get(b"a") is not None and again.get(b"b") is None and len(again) == 1


def test_kinds_and_limits_are_checked(tmp_path):
    assert open_cache("none", "a", limit=1.0) is None
    assert isinstance(open_cache("memory", "a", limit=1.0), MemoryCache)
    with pytest.raises(ValueError, match="'tape'"):
        open_cache("tape", "a", limit=1.0)
    with pytest.raises(ValueError, match="got 0"):
        open_cache("memory", "a", limit=0.0)


def test_the_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = DiskCache("f" * 64, GIB)
    cache.put(b"k", some())
    assert len(files(tmp_path / "adazeta" / "states" / ("f" * 64))) == 1


def test_fingerprint_tells_models_apart():
    def of(model, *extra, above=()):
        return fingerprint(model, frozen_tensors(model.requires_grad_(False), above), *extra)

    same = of(tiny_llama())
    assert of(tiny_llama()) == same
    assert of(tiny_llama(), 1) != of(tiny_llama(), 2)
    assert (
        len({same, of(tiny_bert_mlm()), of(tiny_llama(layers=3)), of(tiny_llama().double())}) == 4
    )
    for tensor in ("model.layers.0.mlp.up_proj.weight", "model.rotary_emb.inv_freq"):
        model = tiny_llama()
        where = frozen_tensors(model.requires_grad_(False))[tensor]
        where.view(-1)[-1] += 1e-3
        assert of(model) != same
    model = tiny_llama()
    model.config._attn_implementation = "eager"
    assert of(model) != same
    model = tiny_llama()
    base = of(model, above=[model.model.layers[1]])
    model.model.layers[1].mlp.up_proj.weight.data.add_(1)
    assert of(model, above=[model.model.layers[1]]) == base


def test_fingerprint_needs_the_weights():
    model = tiny_llama().requires_grad_(False).to("meta")
    with pytest.raises(ValueError, match="cache_trunk"):
        fingerprint(model, frozen_tensors(model))


def test_versions_change_with_every_write():
    tensor = torch.zeros(3)
    before = versions([tensor])
    assert versions([tensor]) == before
    tensor[0] = 1
    assert versions([tensor]) != before
