"""The reader of machine code, on listings small enough to count by hand."""

from collections import Counter

import pytest

from benchmarks.static.disassemble import by_class, by_width, gcn_blocks, sass_blocks
from benchmarks.static.flow import reachable, static_counts, ways_of
from benchmarks.static.measured import KERNELS, errors, table
from benchmarks.static.model import BANDWIDTH, CLOCK, SMS, predict, residents
from benchmarks.static.report import executed, moved
from benchmarks.static.values import repeated


def sass(*lines):
    return "".join(
        f"        /*{16 * index:04x}*/   {line} ;   /* 0x0 */\n" for index, line in enumerate(lines)
    )


LOOP = sass(
    "MOV R1, RZ",
    "LDG.E.128 R4, [R2.64]",
    "FADD R4, R4, R5",
    "@!P0 BRA 0x60",
    "CALL.REL.NOINC 0xb0",
    "BRA 0x80",
    "FMUL R4, R4, R6",
    "FMUL R4, R4, R6",
    "@P1 BRA 0x10",
    "STG.E.64 [R2.64], R4",
    "EXIT",
    "FFMA R4, R4, R4, R4",
    "RET R2",
)


def test_a_loop_is_counted_by_iteration_and_rare_calls_are_left_out():
    (way,) = ways_of(sass_blocks(LOOP))
    (loop,) = way.loops
    assert loop.counts == Counter({"LDG.E.128": 1, "FADD": 1, "BRA": 2, "FMUL": 2})
    assert way.least == way.most == Counter({"MOV": 1, "STG.E.64": 1, "EXIT": 1})
    plain = {"least": way.least, "loops": [{"counts": loop.counts, "inner": []}]}
    total = executed(plain, (5,))
    assert total["FADD"] == 5 and total["STG.E.64"] == 1
    assert moved(total) == 5 * 16 + 8


def test_the_body_of_a_call_is_not_reached():
    blocks = sass_blocks(LOOP)
    assert "FFMA" not in static_counts(blocks) and len(reachable(blocks)) < len(blocks)


def test_a_call_that_never_returns_is_a_branch():
    blocks = sass_blocks(
        sass(
            "NOP",
            "@P3 CALL.REL.NOINC 0x40",
            "FADD R1, R1, R1",
            "BRA 0x0",
            "STG.E [R2.64], R1",
            "EXIT",
        )
    )
    (way,) = ways_of(blocks)
    assert way.least["STG.E"] == 1 and len(way.loops) == 1
    assert way.loops[0].counts["FADD"] == 1


def test_a_loop_left_by_a_call_is_one_although_what_follows_calls_a_subroutine():
    blocks = sass_blocks(
        sass(
            "NOP",
            "FADD R1, R1, R1",
            "@!P0 CALL.REL.NOINC 0x40",
            "BRA 0x10",
            "CALL.REL.NOINC 0x70",
            "STG.E [R2.64], R1",
            "EXIT",
            "FMUL R1, R1, R1",
            "RET R2",
        )
    )
    (way,) = ways_of(blocks)
    assert way.least["STG.E"] == 1 and way.loops[0].counts["FADD"] == 1


def test_two_loops_that_exclude_each_other_are_two_ways():
    listing = sass(
        "@P0 BRA 0x40",
        "FADD R1, R1, R1",
        "@P1 BRA 0x10",
        "EXIT",
        "FMUL R1, R1, R1",
        "@P1 BRA 0x40",
        "EXIT",
    )
    ways = ways_of(sass_blocks(listing))
    assert sorted(next(iter(set(way.loops[0].counts) - {"BRA"})) for way in ways) == [
        "FADD",
        "FMUL",
    ]


def test_a_branch_into_nowhere_is_an_error():
    with pytest.raises(ValueError, match="'f0'"):
        sass_blocks(sass("@P0 BRA 0xf0", "EXIT"))
    with pytest.raises(ValueError, match="no instructions"):
        sass_blocks("nothing here")


def test_amd_assembly():
    assembly = """
kernel:
	s_load_dwordx2 s[0:1], s[2:3], 0x0
.LBB0_1:                                ; %loop
.Ltmp1:
	global_load_dwordx4 v[0:3], v4, s[0:1]
	v_fma_f32 v0, v1, v2, v3
	v_fma_mix_f32 v0, v1, 1.0, v3 op_sel_hi:[1,1,0]
	s_cbranch_scc1 .LBB0_1
	global_store_short v4, v0, s[0:1]
	s_endpgm
	.section	.rodata
"""
    blocks = gcn_blocks(assembly)
    (way,) = ways_of(blocks)
    assert by_width(static_counts(blocks)) == {"load 16": 1, "store 2": 1}
    assert by_class(way.loops[0].counts, "gfx942") == {
        "fp32 add": 1,
        "fma": 1,
        "global memory": 1,
        "control": 1,
    }


MASKED = """
kernel:
	s_and_saveexec_b64 s[0:1], vcc
	s_cbranch_execz .LBB0_2
	global_load_dwordx4 v[0:3], v4, s[0:1]
.LBB0_2:
	s_cbranch_scc1 .LBB0_4
	v_mul_f32 v0, v1, v2
.LBB0_4:
	s_endpgm
"""


def test_a_branch_around_a_masked_access_is_not_taken():
    (way,) = ways_of(gcn_blocks(MASKED))
    assert way.least["global_load_dwordx4"] == 1 and way.least["v_mul_f32"] == 0


def test_a_product_with_a_float16_is_no_fused_operation_on_amd():
    assembly = """
kernel:
	v_fma_mix_f32 v18, v92, s13, neg(0) op_sel_hi:[1,0,0]
	v_fma_mix_f32 v18, v92, 1.0, v3 op_sel_hi:[1,0,0]
	v_fma_mix_f32 v18, v92, s13, v3 op_sel_hi:[1,0,0]
	s_endpgm
"""
    (way,) = ways_of(gcn_blocks(assembly))
    assert by_class(way.least, "gfx942") == {"fp32 mul": 1, "fp32 add": 1, "fma": 1, "control": 1}


def test_the_model_takes_the_slowest_part_and_a_share_of_the_other():
    memory = predict({"fp32 add": 1.0}, 8.0, 1 << 20)
    assert memory.limit == "memory" and memory.memory_fraction == pytest.approx(1.0)
    assert memory.time_ps == pytest.approx(1e12 * 8 / BANDWIDTH)
    classes = {"fp32 add": 1000.0, "integer": 400.0}
    work = 1e12 * 1400 / (128 * SMS * CLOCK)
    for programs in (1, 2, 5):
        issue = predict(classes, 8.0, programs)
        assert issue.limit == "issue"
        assert issue.time_ps == pytest.approx(work + memory.time_ps / programs)
        assert issue.memory_fraction == pytest.approx(memory.time_ps / issue.time_ps)
    assert predict({"special": 100.0}, 8.0, 2).limit == "special pipe"
    assert predict({"integer multiply": 100.0}, 8.0, 2).limit == "integer multiply pipe"


def test_programs_share_what_a_processor_has():
    assert residents("sm_90", 166, 256, 0) == (1, 8)  # registers
    assert residents("sm_90", 128, 256, 0) == (2, 16)
    assert residents("sm_90", 72, 128, 2048) == (7, 28)
    assert residents("sm_90", 73, 128, 2048) == (6, 24)
    assert residents("sm_90", 16, 128, 0) == (16, 64)  # warps
    assert residents("sm_90", 16, 32, 0) == (32, 32)  # programs
    assert residents("sm_80", 16, 32, 40 << 10) == (4, 4)  # shared memory
    assert residents("gfx942", 128, 128, 0) == (8, 16)


def test_the_model_is_within_a_fifth_of_what_an_h100_took():
    for kernel, programs, predicted, measured in errors():
        assert programs >= 2
        assert 0.8 < predicted / measured < 1.1, kernel
    assert len(table().splitlines()) == 2 + len(KERNELS)


def test_a_fused_operation_on_the_same_values_is_a_repetition():
    def count(*between, again="FFMA R9, R4.reuse, R5, 0.5"):
        return repeated(sass_blocks(sass("FFMA R8, R4, R5.reuse, 0.5", *between, again, "EXIT")))

    assert count() == count("MOV R6, R7", "LDG.E.64 R2, [R6.64]", "STG.E [R2.64], R8") == 1
    # What both work on may be made twice as well.
    made = ("SHF.R.S32.HI R3, RZ, 0x8, R6", "SGXT R3, R3, 0x16", "I2FP.F32.S32 R4, R3")
    assert count(*made, "FFMA R8, R4, R5, 0.5", *made) == 1
    assert count("FADD R4, R1, R2", "FFMA R7, R4, R5, 1", "FADD R4, R1, R2",
                 again="FFMA R9, R4, R5, 1") == 1  # fmt: skip
    for other in ("FFMA R9, R5, R5, 0.5", "FFMA R9, R4, R5, 0.25", "FFMA R9, -R4, R5, 0.5",
                  "FFMA.FTZ R9, R4, R5, 0.5", "@P0 FFMA R9, R4, R5, 0.5"):  # fmt: skip
        assert count(again=other) == 0
    for write in ("MOV R4, R6", "LDG.E.128 R2, [R6.64]", "IMAD.WIDE.U32 R4, R6, R7, RZ",
                  "@P0 MOV R5, R6", "SHFL.BFLY PT, R5, R6, 0x1, 0x1f", "FFMA2 R4, R6, R6, R6",
                  "BAR.SYNC 0x0", "HMMA.1688.F32 R0, R8, R10, R0", "@P0 BRA 0x0"):  # fmt: skip
        assert count(write) == 0, write
