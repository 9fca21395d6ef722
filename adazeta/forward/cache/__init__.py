"""Where results of the frozen part of a model are kept: nowhere, in memory or on disk."""

from pathlib import Path

from adazeta.forward.cache.base import GIB, MemoryCache, StateCache
from adazeta.forward.cache.disk import DiskCache

KINDS = ("none", "memory", "disk")


def open_cache(
    kind: str, fingerprint: str, *, limit: float, folder: str | Path | None = None
) -> StateCache | None:
    """Open a cache for the results of one frozen computation.

    Args:
        kind: ``"none"``, ``"memory"`` or ``"disk"``.
        fingerprint: tells the computation, see :func:`adazeta.forward.fingerprint.fingerprint`;
            entries of another one are never found.
        limit: size in GiB. On disk it holds for the whole folder: entries of computations that
            were not used for the longest time make room first.
        folder: of a cache on disk; by default ``states`` in
            :func:`adazeta.support.files.cache_folder`.

    Returns:
        The cache, or None for ``"none"``.

    Raises:
        ValueError: another kind, or a limit that is not above 0.
        OSError: the folder cannot be written.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of cache must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "none":
        return None
    size = int(limit * GIB)
    if kind == "memory":
        return MemoryCache(size)
    return DiskCache(fingerprint, size, folder)
