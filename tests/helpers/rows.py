"""What every row of a benchmark has."""

import numpy as np

from benchmarks.measure.harness import KEYS


def check_rows(rows):
    assert rows
    for row in rows:
        assert set(row) == set(KEYS)
        assert row["p20"] <= row["median"] <= row["p80"]
        assert np.isfinite(row["median"])
