"""The package imports and installs in every way people use, with Hugging Face's `kernels` or not.

transformers looks for an installed distribution named `kernels`. Our sources have a folder of that
name at the root, which is on `sys.path` in a checkout. The matrix below runs real interpreters in
small virtual environments: one per way of installing, with and without a stand-in for Hugging
Face's distribution. They borrow the dependencies of the environment that runs the tests.
"""

import ast
import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import adazeta
from tests.helpers.paths import ROOT

SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py"))
C_SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.[ch]"))
LIBRARY = "adazeta/kernels/cpu/libadazeta_cpu.so"
HAS_COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is not None

# What one cell of the matrix does. transformers imports names from Hugging Face's distribution when
# a model or the Trainer is imported (`import transformers` alone would prove nothing). That takes
# seconds, so it is done where our folder competes for the name: at the root. Elsewhere it is enough
# to see which `kernels` is found, and where there is none, that transformers finds none.
PROBE = """
import importlib.metadata, sys
from pathlib import Path

installed, hub_kernels, expected_home, depth = sys.argv[1:5]

import adazeta, adazeta.kernels
home = Path(adazeta.__file__).resolve().parents[1]
assert home == Path(expected_home).resolve(), f"adazeta came from {home}"
assert adazeta.kernels.gaussian(1, 0, 3).shape == (3,)

from transformers.utils import is_kernels_available
assert is_kernels_available() == (hub_kernels == "present"), is_kernels_available()
if hub_kernels == "present":
    import kernels
    assert kernels.IS_STAND_IN
    from kernels import CUDAProperties
if hub_kernels == "present" and depth == "models":
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer
    LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    ))
if installed != "none":
    from adazeta.kernels.cpu import library
    assert library.FILE.is_file() == (sys.argv[5] == "True"), library.FILE
    assert importlib.metadata.version("adazeta") == adazeta.__version__
"""

# Any name can be imported from it, as releases of transformers differ in what they ask for.
HUB_KERNELS = """
IS_STAND_IN = True

def use_kernel_forward_from_hub(layer_name):
    return lambda cls: cls

def use_kernelized_func(*functions):
    return lambda cls: cls

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the caller's Python settings; return what it printed."""
    drop = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in drop}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} in {cwd} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_sources(target: Path) -> Path:
    """Copy what a build needs, so that building leaves nothing behind in the checkout."""
    target.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    for name in ("adazeta", "kernels"):
        built = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, target / name, ignore=built)
    (target / "probe").mkdir()
    (target / "probe" / "__main__.py").write_text(PROBE)
    return target


def install_hub_kernels(site: Path) -> None:
    """Install the stand-in, with the entry point that has broken builds beside a `kernels/`."""
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.18.2")
    package = site / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text(HUB_KERNELS + f'\n__version__ = "{version}"\n')
    (package / "locking.py").write_text("def write_egg_lockfile(command, basename, filename): ...")
    info = site / f"kernels-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        "[egg_info.writers]\nkernels.lock = kernels.locking:write_egg_lockfile\n"
    )
    (info / "RECORD").write_text("")


class Environment:
    """A virtual environment that sees the dependencies of the running one, but not its adazeta."""

    def __init__(self, folder: Path, *, hub_kernels: bool):
        venv.EnvBuilder(symlinks=os.name != "nt", with_pip=False).create(folder)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.site = Path(run(self.python, "-c", purelib, cwd=folder).strip())
        # A plain path line: .pth files inside the named folder, such as that of an editable
        # install of this very package, are not followed.
        borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (self.site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
        if hub_kernels:
            install_hub_kernels(self.site)

    def pip(self, *arguments: str | Path, cwd: Path) -> None:
        """Run pip without network and without build isolation."""
        command, *rest = arguments
        offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
        run(self.python, "-m", "pip", command, *offline, *rest, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built where Hugging Face's `kernels` is installed (the harder case)."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = Environment(folder / "venv", hub_kernels=True)
    source = copy_sources(folder / "source")
    environment.pip("wheel", "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


# (how adazeta is installed, Hugging Face's kernels, how Python is started, from where).
# `python -c` and `python -m` both put the current folder first on sys.path; a script, as `pytest`
# is one, puts its own. Not installed and elsewhere is left out: nothing could be found.
CELLS = [
    ("none", "absent", "-c", "root"),
    ("none", "present", "-m", "root"),
    ("none", "present", "pytest", "root"),
    ("editable", "absent", "-m", "root"),
    ("editable", "absent", "-c", "elsewhere"),
    ("editable", "present", "-c", "root"),
    ("editable", "present", "-c", "elsewhere"),
    ("wheel", "absent", "-c", "root"),
    ("wheel", "absent", "-c", "elsewhere"),
    ("wheel", "present", "-m", "root"),
    ("wheel", "present", "-c", "elsewhere"),
]


def run_cell(environment: Environment, root: Path, cell: tuple[str, str, str, str]) -> None:
    installed, hub_kernels, start, place = cell
    elsewhere = environment.site.parent
    home = environment.site if installed == "wheel" and place == "elsewhere" else root
    depth = "models" if place == "root" and start != "pytest" else "names"
    # From the root, the checkout hides an installed wheel, and its library is not built.
    built = HAS_COMPILER and not (installed == "wheel" and place == "root")
    arguments = (installed, hub_kernels, home, depth, str(built))
    cwd = root if place == "root" else elsewhere
    if start == "-c":
        run(environment.python, "-c", PROBE, *arguments, cwd=cwd)
    elif start == "-m":
        run(environment.python, "-m", "probe", *arguments, cwd=cwd)
    else:
        test = (
            "import runpy, sys\n\n"
            "def test_probe():\n"
            f"    sys.argv[1:] = {[str(argument) for argument in arguments]}\n"
            "    runpy.run_module('probe', run_name='__main__')\n"
        )
        (root / "test_probe.py").write_text(test)
        script = elsewhere / "start_pytest.py"
        script.write_text("import sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))\n")
        plugins = ("-p", "no:cacheprovider", "-W", "default")
        run(environment.python, script, *plugins, "test_probe.py", cwd=cwd)


@pytest.fixture(scope="module")
def cells(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path
) -> dict[tuple[str, str, str, str], "Future[None]"]:
    """Start every cell, two at a time: each takes seconds, most of them importing torch."""
    folder = tmp_path_factory.mktemp("matrix")
    pairs = sorted({cell[:2] for cell in CELLS})

    def prepare(pair: tuple[str, str]) -> tuple[Environment, Path]:
        installed, hub_kernels = pair
        name = "-".join(pair)
        environment = Environment(folder / f"{name}-venv", hub_kernels=hub_kernels == "present")
        root = copy_sources(folder / name)
        if installed == "editable":
            environment.pip("install", "--ignore-installed", "-e", root, cwd=folder)
        elif installed == "wheel":
            environment.pip("install", "--ignore-installed", wheel, cwd=folder)
        return environment, root

    with ThreadPoolExecutor(2) as pool:
        prepared = dict(zip(pairs, pool.map(prepare, pairs), strict=True))
        return {cell: pool.submit(run_cell, *prepared[cell[:2]], cell) for cell in CELLS}


def hub_kernels_is_installed() -> bool:
    try:
        importlib.metadata.distribution("kernels")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_imports_work(
    cells: dict[tuple[str, str, str, str], "Future[None]"], cell: tuple[str, str, str, str]
) -> None:
    if cell[1] == "absent" and hub_kernels_is_installed():
        pytest.skip("this environment, which the cell borrows from, has Hugging Face's kernels")
    cells[cell].result()


def test_kernels_folder_is_no_regular_package() -> None:
    assert SOURCES
    assert not (ROOT / "kernels" / "__init__.py").exists()


def imported_modules(path: Path) -> set[str]:
    """Absolute names that a file imports, wherever in it; relative imports are left out."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_kernels_need_only_torch_and_triton(path: Path) -> None:
    needed = {name.split(".")[0] for name in imported_modules(path)} - sys.stdlib_module_names
    assert needed <= {"torch", "triton"}


def test_nothing_imports_the_folder_by_its_bare_name() -> None:
    offenders = [
        path
        for folder in ("adazeta", "kernels", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if any(name.split(".")[0] == "kernels" for name in imported_modules(path))
    ]
    assert offenders == []


def test_wheel_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "adazeta").rglob("*.py")}
    kernels = {f"adazeta/{path.as_posix()}" for path in SOURCES}
    library = {LIBRARY} if HAS_COMPILER else set()
    suites = {path.relative_to(ROOT).as_posix() for path in (ROOT / "adazeta").rglob("*.yaml")}
    assert len(suites) == 3
    assert names == modules | kernels | library | suites | {"adazeta/py.typed"}


def test_wheel_serves_every_python_of_one_platform(wheel: Path) -> None:
    _, _, python, abi, target = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none") and target != "any"


def test_without_a_compiler_the_package_installs_and_says_so(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    environment = Environment(tmp_path / "venv", hub_kernels=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", "no-such-compiler")
        environment.pip("install", "--ignore-installed", source, cwd=tmp_path)
    program = (
        "import torch, adazeta.kernels as k; from adazeta.kernels.cpu import library; "
        "assert 'not built' in library.problem(); "
        "assert k.backend_name(torch.zeros(1)) == 'reference'; "
        "assert k.gaussian(1, 0, 3).shape == (3,)"
    )
    run(environment.python, "-c", program, cwd=tmp_path)


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"adazeta-{adazeta.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert metadata["Version"] == adazeta.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert "adazeta = adazeta.cli:main" in entry_points
    triton = [line for line in metadata.get_all("Requires-Dist", []) if line.startswith("triton")]
    assert len(triton) == 1 and "platform_system" in triton[0]


def test_source_archive_holds_the_kernels(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    build = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    run(sys.executable, "-c", build, cwd=source)
    (built,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.as_posix() for path in [*SOURCES, *C_SOURCES]} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "adazeta/py.typed"} <= names


def test_import_works_without_triton() -> None:
    program = """
    import sys
    from importlib.machinery import PathFinder

    find_spec = PathFinder.find_spec
    PathFinder.find_spec = lambda name, path=None, target=None: (
        None if name.split(".")[0] == "triton" else find_spec(name, path, target)
    )
    import adazeta
    assert "torch" not in sys.modules and "transformers" not in sys.modules
    import adazeta.kernels as ops
    assert ops.gaussian(1, 0, 3).shape == (3,)
    assert "triton" not in sys.modules
    """
    run(sys.executable, "-c", textwrap.dedent(program), cwd=ROOT)
