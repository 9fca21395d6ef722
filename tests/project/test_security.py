"""Nothing that is loaded can run code or write outside its place."""

import ast
import io
import json
import pickle
import tarfile

import pytest
import torch
import yaml

from adazeta.adapters.loading import from_pretrained
from adazeta.cli import main
from adazeta.demo import data
from adazeta.models.loading import load_model, load_tokenizer
from tests.helpers.commands import fails, settings
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

SOURCES = [*(ROOT / "adazeta").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "extractall", "unsafe_load", "full_load", "torch.load", "np.load"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safe")
    tiny_llama().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [{"text": t, "label": k} for k, t in enumerate(("a bad film", "a good film"))] * 4
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings(folder), "max_steps": 4}))
    return folder


@pytest.fixture
def no_pickle(monkeypatch):
    """Make every way to unpickle an error."""

    def refused(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr(torch, "load", refused)
    monkeypatch.setattr(torch.serialization, "load", refused)


def test_the_sources_name_no_pickle_and_no_unsafe_loader():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not FORBIDDEN & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in FORBIDDEN, path
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in UNSAFE_CALLS and called.split(".")[-1] != "extractall", path
                assert not (called == "yaml.load"), path


def test_training_resuming_and_loading_unpickle_nothing(folder, no_pickle, capsys):
    out = folder / "run"
    command = ["train", str(folder / "config.yaml"), "--output_dir", str(out)]
    assert main([*command, "--save_steps", "2", "--max_steps", "2"]) == 0
    # What other trainers leave in a checkpoint is not opened either.
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
        (out / "checkpoint-2" / name).write_bytes(pickle.dumps({"x": 1}))
    assert main([*command, "--save_steps", "2", "--resume_from_checkpoint", "true"]) == 0
    assert main(["eval", str(out), "--data", str(folder / "data.jsonl")]) == 0
    assert main(["predict", str(out), "a film"]) == 0
    assert main(["replay", str(out), "--output", str(folder / "again")]) == 0
    from_pretrained(None, folder / "again")


def test_pickled_weights_are_refused_with_the_remedy(tmp_path, capsys):
    model = tiny_llama()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="no whole model.safetensors .* are not loaded; convert them"):
        load_model(tmp_path)


def test_code_of_a_repository_is_never_run(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('run')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(tmp_path)
    extra = json.loads((tmp_path / "tokenizer_config.json").read_text())
    extra |= {"auto_map": {"AutoTokenizer": ["evil.Slow", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(extra))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer(tmp_path)


def test_damaged_weights_of_a_base_are_named(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="weights of .* are damaged"):
        load_model(tmp_path)


def test_archives_are_read_in_memory_and_write_nothing(tmp_path, monkeypatch):
    """Members with hostile names beside the wanted one leave no trace."""
    target = tmp_path / "outside.txt"

    def archive(path, content):
        with tarfile.open(path, "w:gz") as tar:
            for name in (f"../../{target.name}", str(target), content[0]):
                member = tarfile.TarInfo(name)
                member.size = len(content[1])
                tar.addfile(member, io.BytesIO(content[1]))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(link)
        return path

    rows = "".join(f"{k}\t{score}\tsentence {k}\n" for k, score in enumerate((2.0, -2.0) * 4))
    inner = archive(tmp_path / "inner.tar.gz", (data._REVIEWS, rows.encode("latin-1")))
    outer = archive(tmp_path / "outer.tar.gz", (data._ARCHIVE, inner.read_bytes()))
    monkeypatch.setattr(data, "fetch", lambda package: outer)
    before = sorted(tmp_path.rglob("*"))
    splits = data.film_reviews({"train": 4, "test": 2})
    assert [len(part) for part in splits.values()] == [4, 2]
    assert sorted(tmp_path.rglob("*")) == before and not target.exists()


def test_yaml_makes_no_objects(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    mark = tmp_path / "mark"
    path.write_text(f"model: !!python/object/apply:os.mkdir [{mark}]\n")
    assert "is not valid YAML" in fails(capsys, "train", path)
    path.write_text("model: x\n")
    value = f"[!!python/object/apply:os.mkdir [{mark}]]"
    assert "not a list or mapping in YAML" in fails(capsys, "train", path, "--label_words", value)
    assert not mark.exists()
