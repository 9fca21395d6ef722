"""The repository's root, for tests that read files of it or start processes in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
