import subprocess
import sys

import pytest
import torch

from adazeta.kernels import backend_name, use_backend, use_triton
from adazeta.kernels.cpu import library
from tests.helpers.paths import ROOT


def test_a_cpu_tensor_is_served_by_the_c_library_or_else_the_reference(monkeypatch):
    monkeypatch.delenv("ADAZETA_BACKEND", raising=False)
    monkeypatch.setattr(library, "problem", lambda: None)
    assert backend_name(torch.zeros(1)) == "native"
    assert backend_name(torch.zeros(1, device="meta")) == "reference"
    monkeypatch.setattr(library, "problem", lambda: "the C library was not built")
    assert backend_name(torch.zeros(1)) == "reference"
    with use_backend("native"):
        assert backend_name(torch.zeros(1, device="meta")) == "reference"
        with pytest.raises(RuntimeError, match="forced but the C library was not built"):
            backend_name(torch.zeros(1))


def test_the_c_library_is_for_cpus():
    class OnDevice:
        device = torch.device("cuda", 0)

    with use_backend("native"), pytest.raises(RuntimeError, match="cuda:0, and it is for CPUs"):
        backend_name(OnDevice())


def test_an_accelerator_tensor_is_served_by_triton_where_there_is_one(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("ADAZETA_BACKEND", raising=False)

    class OnDevice:
        device = torch.device("cuda", 0)

    assert use_triton(OnDevice())
    with use_backend("reference"):
        assert not use_triton(OnDevice())
    monkeypatch.setattr("adazeta.kernels.dispatch._has_triton", lambda: False)
    assert not use_triton(OnDevice())
    with use_backend("triton"), pytest.raises(RuntimeError, match="not installed"):
        use_triton(OnDevice())


def test_forced_backends_nest_and_come_back(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("ADAZETA_BACKEND", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tensor = torch.zeros(1)
    with use_backend("triton"):
        assert backend_name(tensor) == "triton"
        with use_backend("reference"):
            assert backend_name(tensor) == "reference"
        with pytest.raises(ZeroDivisionError), use_backend("auto"):
            _ = 1 / 0
        assert backend_name(tensor) == "triton"
    assert backend_name(tensor) != "triton"


def test_the_environment_forces_a_backend_and_the_context_wins(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("ADAZETA_BACKEND", "triton")
    assert use_triton(torch.zeros(1))
    with use_backend("reference"):
        assert not use_triton(torch.zeros(1))
    monkeypatch.setenv("ADAZETA_BACKEND", "cuda")
    with pytest.raises(ValueError, match="ADAZETA_BACKEND is 'cuda'"):
        use_triton(torch.zeros(1))


def test_unknown_backend_names_are_refused():
    with pytest.raises(ValueError, match="backend is 'c'"), use_backend("c"):
        pass


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        use_triton(torch.zeros(1))


def test_the_ops_load_no_more_than_they_need_on_a_cpu():
    # Calling a custom op makes torch load its compiler, and with it triton where that is installed;
    # our own Triton kernels stay out.
    code = (
        "import sys, torch, adazeta.kernels as k; "
        "early = [m for m in ('triton', 'transformers', 'kernels') if m in sys.modules]; "
        "k.add_noise_(torch.zeros(5), [1], [1.0]); "
        "k.tt_linear(torch.zeros(2, 4), [torch.zeros(1, 4, 2), torch.zeros(2, 4, 1)], cut=1, "
        "out_features=4); "
        "late = [m for m in ('transformers', 'kernels', 'adazeta.kernels.gpu') "
        " if m in sys.modules]; print(early + late)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
