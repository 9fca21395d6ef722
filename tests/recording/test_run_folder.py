"""Who may write in the folder of a run."""

import errno
import os
import subprocess
import sys

import pytest

from adazeta.recording.folder import STATE_NAME, claimed
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.paths import ROOT
from tests.helpers.runs import make


def test_one_process_at_a_time(tmp_path):
    trainer = make(tmp_path)
    before = bits(trainer.model)
    with claimed(tmp_path), pytest.raises(OSError, match=f"another process .{os.getpid()}"):
        trainer.train()
    assert_same_bits(trainer.model, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
    trainer.train()


def test_a_worker_that_outlives_its_parent_does_not_keep_the_folder(tmp_path):
    holder = """
import os, sys, time
from adazeta.recording.folder import claimed
ready, tell = os.pipe()
with claimed(sys.argv[1]):
    if os.fork() == 0:
        os.write(tell, b"!")
        time.sleep(60)
    os.read(ready, 1)
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", holder, str(tmp_path)], check=True, cwd=ROOT)
    with claimed(tmp_path):
        pass


def test_scratch_files_of_a_killed_process_are_removed(tmp_path):
    snapshot = tmp_path / "checkpoint-2"
    half = tmp_path / ".checkpoint-4.part"
    for folder in (snapshot, half):
        folder.mkdir()
    stale = [
        tmp_path / "generators.json.77.part", snapshot / f"{STATE_NAME}.77.part", half / "x",
    ]  # fmt: skip
    for path in [*stale, tmp_path / "mine.txt", snapshot / "model.safetensors"]:
        path.touch()
    with claimed(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {".lock", "checkpoint-2", "checkpoint-2/model.safetensors", "mine.txt"}


def test_a_folder_that_cannot_be_written_is_an_error_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="output_dir cannot be written"), claimed(tmp_path / "file"):
        pass
    trainer = make(tmp_path / "run")
    real = os.open

    def read_only(path, flags, *args):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return real(path, flags, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(OSError, match="cannot be written .Read-only file system") as caught:
            trainer.train()
    assert caught.value.errno == errno.EROFS
