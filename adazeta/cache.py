"""Where downloads and converted models are kept."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/adazeta``, by default ``~/.cache/adazeta``; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adazeta"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal, without reading it at once."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
