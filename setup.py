"""Packaging of AdaZeta; the tool settings live in pyproject.toml.

``kernels/`` at the root is mapped to the import name ``adazeta.kernels`` and must never hold an
``__init__.py``: Hugging Face ships a distribution whose import name is ``kernels``, and a regular
package of that name beside the sources would hide it from transformers (CONTRIBUTING.md).

``kernels/cpu/`` is compiled to a plain shared library, which its ``library.py`` opens by ctypes.
It is optional: where it cannot be compiled, the package installs without it.
"""

import os
import platform
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "adazeta.kernels.cpu.libadazeta_cpu"
SOURCES = "kernels/cpu"
# Contraction would fuse a product and a sum into one rounding, and change the bits. The scheduler
# is for the noise: its chains of operations are long, and only side by side do they fill a core.
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-pthread",
    "-Wno-psabi",
]
SCHEDULE = ["-fschedule-insns"]
LEVELS = {
    "generic": [],
    "avx2": ["-DLEVEL_AVX2", "-mavx2", "-mfma", "-mf16c", "-mtune=haswell"],
    "avx512": [
        "-DLEVEL_AVX512",
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mf16c",
        "-mtune=skylake-avx512",
    ],
}


class BuildLibrary(build_ext):
    """Compile ``kernels/cpu``: one source once per level of the instruction set."""

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without the ABI of a Python, as it uses none."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; a failure is reported and leaves the package without the library."""
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        levels = LEVELS if x86 else {"generic": []}
        objects = []
        for level, flags in levels.items():
            folder = os.path.join(self.build_temp, level)
            objects += self._compile([f"{SOURCES}/tiles.c"], folder, [*flags, *SCHEDULE])
            objects += self._compile([f"{SOURCES}/blocks.c"], folder, flags)
        rest = [f"{SOURCES}/{name}.c" for name in ("library", "pool", "unpack")]
        objects += self._compile(rest, self.build_temp, ["-DX86_LEVELS"] if x86 else [])
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        self.compiler.link_shared_object(
            objects, target, libraries=["m"], extra_postargs=["-pthread"]
        )

    def _compile(self, sources: list[str], folder: str, flags: list[str]) -> list[str]:
        compiled: list[str] = self.compiler.compile(
            sources, output_dir=folder, extra_postargs=[*FLAGS, *flags]
        )
        return compiled


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel's name; the library does not use Python's ABI."""
        return ("py3", "none", super().get_tag()[2])


def read_version() -> str:
    """Return ``__version__`` of the package without importing it (importing may need torch)."""
    source = (ROOT / "adazeta" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('adazeta/version.py holds no line of the form __version__ = "0.1.0"')
    return match.group(1)


def read_long_description() -> str:
    """Return the text of README.md, empty if there is none (as in a partial checkout)."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


DEMO = ["gguf", "matplotlib"]
BENCH = ["pytest-benchmark", "matplotlib", "peft>=0.18"]
# The oldest that can be imported with transformers 5; 0.17 looks for a cache it no longer has.
PEFT = ["peft>=0.18"]
DATA = ["datasets"]
LAMB = ["pytorch-optimizer"]
REWARDS = ["jsonschema", "vaderSentiment", "reasoning-gym"]
ROUGE = ["rouge-score"]
QUANTISE = ["bitsandbytes", "gguf", "torchao"]
DOCS = ["mkdocs-material", "mkdocstrings[python]", "ruff"]  # ruff formats the signatures
TEST = [
    "pytest>=8",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "tensorboard",
    "scikit-learn",
    "jsonschema",
    "vaderSentiment",
    # test_packaging.py builds the wheel with the build backend of this environment, so that it
    # needs no network; setuptools builds wheels by itself from 70.1 on.
    "setuptools>=70.1",
    *DEMO,
    *BENCH,
    *PEFT,
    *LAMB,
    *ROUGE,
]

setup(
    name="adazeta",
    version=read_version(),
    description="Zeroth-order fine-tuning of language models with tensor-train adapters",
    long_description=read_long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["adazeta", "adazeta.*"]),
        "adazeta.kernels",
        *(f"adazeta.kernels.{folder}" for folder in ("ops", "reference", "gpu", "cpu")),
    ],
    package_dir={"adazeta": "adazeta", "adazeta.kernels": "kernels"},
    package_data={"adazeta": ["py.typed"], "adazeta.protocols": ["*.yaml"]},
    ext_modules=[
        Extension(
            LIBRARY,
            [f"{SOURCES}/{name}.c" for name in ("blocks", "library", "pool", "tiles", "unpack")],
            depends=[
                f"{SOURCES}/{name}.h"
                for name in ("blocks", "convert", "factors", "jobs", "noise", "vector")
            ],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
    zip_safe=False,
    install_requires=[
        "torch>=2.8",
        "transformers>=5.0",
        "accelerate",
        "numpy",
        "safetensors",
        "pyyaml",
        # No upper bound and no pin: a CUDA build of torch pins the triton it was built with.
        'triton>=3.4; platform_system == "Linux"',
    ],
    extras_require={
        "demo": DEMO,
        "bench": BENCH,
        "peft": PEFT,
        "data": DATA,
        "rewards": REWARDS,
        "rouge": ROUGE,
        "quantise": QUANTISE,
        "first-order": LAMB,
        "docs": DOCS,
        "test": sorted(set(TEST)),
        "all": sorted({*TEST, *DATA, *REWARDS, *ROUGE}),
    },
    entry_points={"console_scripts": ["adazeta = adazeta.cli:main"]},
)
