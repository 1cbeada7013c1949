"""The machine code of the kernels' inner loops: what no test of results shows, and what can cost half of the speed.

A loop here is innermost and holds 8 or more multiply-adds. It stalls where it loads a vector from bytes of the stack of
which a narrower store of the same turn has written some: the processor cannot forward a store that does not hold all of
the load, so the load waits until the store has left the pipeline. It spills where it stores whole vectors to the stack.
"""

import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from test_objects import path

import fastsoftmax
from fastsoftmax import _dispatch

VECTORS = ("x86_64_v3", "x86_64_v4", "x86_64_v4_bf16", "x86_64_v4_amx")
MODULES = [f"{tag}_{isa}" for tag, isa in _dispatch.modules(_dispatch.built()) if isa in VECTORS]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or not MODULES, reason="reads ELF objects of x86-64"),
    pytest.mark.skipif(not shutil.which("objdump"), reason="no objdump (binutils): loops are NOT checked"),
]

# Loops that spill, at most, by GCC 12: lower a figure when the kernels reach it. New kernels may raise one by their own
# loops, or by one or two where GCC then divides the present ones otherwise. What spills: with AVX2, rows that are
# stored late and groups of rows, whose own loops are 5 to 40 % faster nevertheless; with AVX-512, those of eight
# registers; the double-word sums of narrow rows, which are in memory, of long rows, and with AVX2 the sums of cross
# entropy that keep weights beside; bfloat16 with AVX-512, which keeps the orders of two permutations in registers, and
# is 20 to 30 % faster for it. Results with gaps leave a loop through a buffer on the stack, which counts as spilling.
SPILLING = {
    "f32_x86_64_v3": 138, "f64_x86_64_v3": 133, "f16_x86_64_v3": 137, "bf16_x86_64_v3": 137,
    "f32_x86_64_v4": 81, "f64_x86_64_v4": 82, "f16_x86_64_v4": 79, "bf16_x86_64_v4": 79,
    "bf16_x86_64_v4_bf16": 10, "bf16_x86_64_v4_amx": 8,
}

LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*([^#<\n]*)", re.MULTILINE)
SLOT = re.compile(r"(-?0x[0-9a-f]+)?\(%(rsp|rbp)\)")
BYTES = {"x": 16, "y": 32, "z": 64}
SCALARS = {"ss": 4, "d": 4, "sd": 8, "q": 8, "lps": 8, "hps": 8, "lpd": 8, "hpd": 8}
HALF = re.compile(r"vpmov[sz]x(bw|wd|dq)|vcvt(ph2ps|ps2ph|ps2pd|dq2pd)")     # memory operands of half a register
LONGEST = 800               # instructions of a loop
BESIDE = 100                # instructions
UNKNOWN = "an unconditional jump"


def disassembled(file):
    """A list of (address, mnemonic, operands)."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", file], capture_output=True, text=True, check=True).stdout
    return [(int(a, 16), mnemonic, operands.strip()) for a, mnemonic, operands in LINE.findall(text)]


def innermost(code):
    """(first, last) of the instructions of each innermost loop."""
    at = {address: i for i, (address, _, _) in enumerate(code)}
    found = []
    for i, (address, mnemonic, operands) in enumerate(code):
        if mnemonic.startswith("j") and re.fullmatch(r"[0-9a-f]+", operands):
            start = at.get(int(operands, 16))
            if start is not None and int(operands, 16) <= address and i - start < LONGEST:
                found.append((start, i))
    # by their starts from the last on, and of one start the shortest first: what is inside a loop comes before it
    least_end = len(code)
    for start, end in sorted(set(found), key=lambda loop: (-loop[0], loop[1])):
        if end < least_end:
            least_end = end
            yield start, end


def multiply_adds(loop):
    return sum("fmadd" in mnemonic or "fnmadd" in mnemonic or "dpbf16" in mnemonic for mnemonic, _ in loop)


def is_hot(loop):
    return multiply_adds(loop) >= 8


def stack_access(mnemonic, operands):
    """(base register, first byte, bytes, whether it is a store) of a vector instruction, or None."""
    slot, vector = SLOT.search(operands), re.search(r"%([xyz])mm", operands)
    if not (slot and vector and mnemonic.startswith("v")):
        return None
    store = operands.endswith(")")              # the last operand is where the result goes
    size = BYTES[vector[1]]
    if lanes := re.search(r"\{1to(\d+)\}", operands):       # one element, broadcast to all lanes
        size //= int(lanes[1])
    elif part := re.search(r"broadcast[fi](\d+)x(\d+)$", mnemonic):
        size = int(part[1]) * int(part[2]) // 8
    elif HALF.match(mnemonic):
        size //= 2
    elif mnemonic.startswith("vcvtsi2"):                    # of an integer
        size = 8 if mnemonic.endswith("q") else 4
    elif mnemonic.startswith("vmov"):
        size = SCALARS.get(mnemonic.removeprefix("vmov"), size)
    elif re.search(r"(ss|sd)$", mnemonic):
        size = SCALARS[mnemonic[-2:]]
    elif "broadcast" in mnemonic:
        size = SCALARS.get(mnemonic[-2:], SCALARS.get(mnemonic[-1:], size))
    return slot[2], int(slot[1] or "0", 16), size, store


def stalling_loads(loop):
    """Loads whose bytes were written last by a store that does not hold all of them."""
    accesses = [stack_access(*instruction) for instruction in loop]
    for i, (mnemonic, _) in enumerate(loop[:-1]):
        if mnemonic in ("jmp", "ret"):
            accesses[i] = UNKNOWN
    return [loop[i] for i, access in enumerate(accesses) if access not in (None, UNKNOWN) and not access[3]
            and waits(access, accesses[i - 1::-1] if i else [], accesses[:i:-1])]


def waits(load, before, turn_before):
    """`before` and `turn_before`: the accesses of this turn and of the last one, the latest first.

    Those of the last turn count where they hold the load piece by piece: else a slot is used for two things, one after
    the other, and the loop has a way through it that the list of its instructions does not show. An unconditional jump
    ends the search: what follows it is reached from elsewhere.
    """
    base, start, size, _ = load
    missing = set(range(start, start + size))
    for stores, same_turn in ((before, True), (turn_before, False)):
        for store in stores:
            if store == UNKNOWN:
                return False
            if store is None or not store[3] or store[0] != base:
                continue
            written = set(range(store[1], store[1] + store[2])) & set(range(start, start + size))
            if len(written) == size:
                return False                    # forwarded
            missing -= written
            if written and (same_turn or not missing):
                return True
    return False


def spills(loop):
    return [i for i in loop if (at := stack_access(*i)) is not None and at[3] and at[2] >= 16]


@pytest.fixture(scope="module", params=MODULES)
def module(request):
    """Its name, its code, (first, last) of each hot loop, and these loops as lists of (mnemonic, operands)."""
    code = disassembled(path(f"kernels.{request.param}"))
    without_addresses = [instruction[1:] for instruction in code]
    hot = [(first, last) for first, last in innermost(code) if is_hot(without_addresses[first:last + 1])]
    assert len(hot) > 30                        # or nothing was seen
    loops = [without_addresses[first:last + 1] for first, last in hot]
    return SimpleNamespace(name=request.param, code=code, hot=hot, loops=loops)


def test_no_load_waits_for_narrower_stores(module):
    stalls = [found for loop in module.loops if (found := stalling_loads(loop))]
    assert not stalls, f"{len(stalls)} of {len(module.loops)} loops stall, the first at {stalls[0]}"


def test_no_string_instruction_beside_a_tile_of_a_product(module):
    """The sums of a tile begin and end in registers. String instructions take tens of cycles to begin; GCC clears and
    copies an array of vectors by them where a loop of more than 16 turns goes over it, and keeps it in memory then: it
    took 10 to 15 % of attention's time."""
    tiles = [at for at, loop in zip(module.hot, module.loops, strict=True)
             if multiply_adds(loop) > 0.45 * len(loop)]
    string = [i for i, (_, mnemonic, _) in enumerate(module.code) if mnemonic.startswith("rep")]
    assert len(tiles) > 10 and string           # or nothing was seen
    beside = [hex(module.code[i][0]) for i in string
              if any(first - BESIDE < i < last + BESIDE for first, last in tiles)]
    assert not beside


def test_no_more_loops_spill_than_before(module):
    compiler = fastsoftmax.show_config("dicts")["compiler"]
    if not compiler.startswith("GCC 12"):
        pytest.skip(f"the figures are those of GCC 12, not of {compiler}")
    assert sum(bool(spills(loop)) for loop in module.loops) <= SPILLING[module.name]


def test_a_stall_is_seen_and_a_slot_used_twice_is_not():
    narrow = [("vmovss", f"%xmm0,{hex(0x248 + at)}(%rsp)") for at in range(0, 32, 4)]
    narrow.append(("vmovaps", "0x248(%rsp),%ymm0"))
    halves = [("vmovaps", "%ymm1,0x80(%rsp)"), ("vmovaps", "%ymm1,0xa0(%rsp)"), ("vpermps", "0x80(%rsp),%zmm2,%zmm1")]
    for stall in (narrow, halves):
        assert len(stalling_loads(stall)) == 1
        assert len(stalling_loads(stall[-1:] + stall[:-1])) == 1        # in the turn before
        assert len(stalling_loads(stall + [("jmp", "23340")])) == 1
    again = [("vmovaps", "%xmm5,0x2c8(%rsp)"), ("vmovaps", "0x2c8(%rsp),%xmm6"), ("vmovapd", "%ymm6,0x2c8(%rsp)"),
             ("vaddpd", "0x2c8(%rsp),%ymm5,%ymm5")]
    other_way = [("vmovaps", "%xmm5,0x2c8(%rsp)"), ("jmp", "23bbe"), ("vmovaps", "0x2c8(%rsp),%ymm6")]
    apart = [("vmovss", "%xmm0,0x240(%rsp)"), ("vmovss", "%xmm0,0x268(%rsp)"), ("vmovaps", "0x248(%rsp),%ymm0")]
    part = [("vmovaps", "%ymm0,0x40(%rsp)"), ("vbroadcastss", "0x44(%rsp),%ymm1"), ("vaddss", "0x48(%rsp),%xmm1,%xmm1"),
            ("vfmadd231ps", "0x44(%rsp){1to16},%zmm2,%zmm1"), ("vbroadcastf32x8", "0x40(%rsp),%zmm1")]
    for fine in (again, other_way, apart, part):
        assert not stalling_loads(fine)
    assert len(spills(again)) == 2
    assert not spills(apart)
