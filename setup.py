"""Packaging of AdaZeta; the tool settings live in pyproject.toml.

``kernels/`` at the root is mapped to the import name ``adazeta.kernels`` and must never hold an
``__init__.py``: Hugging Face ships a distribution whose import name is ``kernels``, and a regular
package of that name beside the sources would hide it from transformers (CONTRIBUTING.md).
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return ``__version__`` of the package without importing it (importing may need torch)."""
    source = (ROOT / "adazeta" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('adazeta/__init__.py holds no line of the form __version__ = "0.1.0"')
    return match.group(1)


def read_long_description() -> str:
    """Return the text of README.md, empty if there is none (as in a partial checkout)."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


DEMO = ["gguf", "matplotlib"]
BENCH = ["pytest-benchmark", "matplotlib", "psutil"]
PEFT = ["peft"]
DATA = ["datasets"]
TEST = [
    "pytest>=8",
    "hypothesis",
    "ruff",
    "mypy",
    "tensorboard",
    # test_packaging.py builds the wheel with the build backend of this environment, so that it
    # needs no network; setuptools builds wheels by itself from 70.1 on.
    "setuptools>=70.1",
    *DEMO,
    *BENCH,
    *PEFT,
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
    packages=["adazeta", "adazeta.kernels"],
    package_dir={"adazeta": "adazeta", "adazeta.kernels": "kernels"},
    package_data={"adazeta": ["py.typed"]},
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
        "test": sorted(set(TEST)),
        "all": sorted({*TEST, *DATA}),
    },
    entry_points={"console_scripts": ["adazeta = adazeta.cli:main"]},
)
