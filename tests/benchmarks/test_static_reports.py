"""The committed static reports: of what they are, and that nothing is amiss in them."""

import json

import pytest

pytest.importorskip("triton")

from adazeta.kernels.gpu.variants import Variant, all_variants  # noqa: E402
from benchmarks.static import suite  # noqa: E402
from benchmarks.static.compile import TARGETS  # noqa: E402
from benchmarks.static.cover import COMPOSED, covered, covering  # noqa: E402
from benchmarks.static.fingerprint import fingerprint  # noqa: E402
from benchmarks.static.summary import WIDE, faults, summary  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402

FILES = sorted((ROOT / "benchmarks/results/static").glob("*.json"))
COLUMNS = {
    "variant",
    "kernel",
    "target",
    "triton",
    "registers",
    "spills",
    "stack_bytes",
    "shared_bytes",
    "global_accesses",
    "occupancy",
    "paths",
    "source",
}
PATH_COLUMNS = {"instructions", "by_class", "least_bytes", "moved_bytes"}


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def rows(request):
    return json.loads(request.param.read_text())


def test_the_oldest_triton_that_of_the_h100_and_the_newest_are_there():
    assert {"triton-3.4.0", "triton-3.6.0", "triton-3.9.0"} <= {file.stem for file in FILES}


def test_no_spill_no_fused_noise_and_wide_accesses(rows):
    assert not faults(rows)


def test_every_variant_is_there_for_every_target(rows):
    targets = {}
    for row in rows:
        targets.setdefault(row["variant"], set()).add(row["target"])
    assert set(targets) == {variant.name for variant in suite.chosen()}
    assert all(held == set(TARGETS) for held in targets.values())
    assert len({row["triton"] for row in rows}) == 1
    fused = {row["fused"] for row in rows if "fused" in row}
    assert fused == {0}


def test_every_row_has_the_columns(rows):
    for row in rows:
        assert set(row) >= COLUMNS
        assert row["paths"]
        for path in row["paths"].values():
            assert set(path) >= PATH_COLUMNS
            assert sum(path["by_class"].values()) == pytest.approx(path["instructions"], abs=0.2)
            if row["target"] == "sm_90":
                assert set(path["h100"]) == {"ps", "limit", "memory_fraction"}
                assert 0 < path["h100"]["memory_fraction"] <= 1


def test_the_noise_costs_no_more_than_is_stated(rows):
    limits = {
        ("float32", "gaussian"): 76,
        ("bfloat16", "gaussian"): 78,
        ("float32", "pairs"): 43,
        ("bfloat16", "pairs"): 42,
    }
    found = {}
    for row in rows:
        for (dtype, distribution), limit in limits.items():
            name = f"add_noise/{dtype}/{distribution}/aligned/nearest"
            if row["variant"] == name:
                found[dtype, distribution, row["target"]] = row["paths"][dtype]["instructions"]
                assert row["paths"][dtype]["instructions"] <= limit, (name, row["target"])
    assert len(found) == len(TARGETS) * len(limits)


def test_programs_of_noise_and_updates_share_an_sm(rows):
    # With one alone, memory and arithmetic do not overlap.
    seen = set()
    for row in rows:
        if row["kernel"] in WIDE:
            assert row["occupancy"]["programs"] >= 2, (row["variant"], row["target"])
            seen.add(row["kernel"])
    assert seen == set(WIDE)


def test_what_is_amiss_is_said():
    row = {
        "variant": "add_noise/aligned",
        "kernel": "add_noise_kernel",
        "target": "sm_90",
        "triton": "3",
        "registers": 8,
        "spills": 0,
        "stack_bytes": 0,
        "fused": 0,
        "global_accesses": {"load 16": 2, "store 16": 2},
        "paths": {},
        "occupancy": {"programs": 4, "warps": 16},
    }
    assert faults([row]) == []
    for change, message in (
        ({"spills": 1}, "1 spills"),
        ({"stack_bytes": 8}, "8 bytes"),
        ({"fused": 2}, "2 fused"),
        ({"flushing": 3}, "3 roots and quotients flush"),
        ({"global_accesses": {"load 16": 2, "store 4": 2}}, "16 bytes"),
    ):
        (line,) = faults([{**row, **change}])
        assert message in line and "add_noise/aligned for sm_90" in line
    assert "| 3 | 1 | 1 | 0 | 0 | 0 | 0 |" in summary([[row]])


def test_every_two_settings_meet_in_the_covering_set_or_of_some_kernels_each_is_in_it():
    variants = {variant.name for variant in all_variants()}
    chosen = set(covering(sorted(variants)))
    assert chosen < variants and len(chosen) < 300
    for kernel in {name.split("/")[0] for name in variants}:
        both = [
            frozenset().union(*(covered(name) for name in names if name.split("/")[0] == kernel))
            for names in (variants, chosen)
        ]
        assert both[0] == both[1]
    assert set(COMPOSED) <= {name.split("/")[0] for name in chosen}


def test_only_rows_of_changed_kernels_are_compiled_again(monkeypatch):
    first, second, third, *_ = all_variants()
    row = {"triton": suite.version_of(None), "registers": 32, "shared_bytes": 0, "paths": {}}
    before = [
        {**row, "variant": variant.name, "target": "sm_90", "source": source, "old": True}
        for variant, source in (
            (first, fingerprint(first)),
            (second, "changed"),
            (third, fingerprint(third)),
        )
    ]
    asked = []

    def compiled(names, targets, **options):
        asked.extend(names)
        return [{**row, "variant": name, "target": "sm_90", "old": False} for name in names]

    monkeypatch.setattr(suite, "rows", compiled)
    *_, found = suite.refreshed(before, [first, second], ["sm_90"])
    assert asked == [second.name]
    assert [(row["variant"], row["old"]) for row in found] == [
        (first.name, True),
        (second.name, False),
    ]
    *_, found = suite.refreshed(before, [first, second], ["sm_90"], patterns=["nothing"])
    assert [row["old"] for row in found] == [True, True] and len(asked) == 1


def test_the_fingerprint_sees_settings_and_code_but_no_comment():
    variant, other, *_ = all_variants()
    assert fingerprint(variant) == fingerprint(Variant(**vars(variant))) != fingerprint(other)
    assert fingerprint(Variant(**{**vars(variant), "num_warps": 16})) != fingerprint(variant)


def test_a_folder_without_triton_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="pip install --target"):
        suite.version_of(tmp_path)
