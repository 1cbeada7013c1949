"""The built modules, disassembled: no instruction stands where a CPU without it could come by, and no symbol leaks.

A module for one instruction set is imported only on CPUs that have it; all others must be plain. Two modules that both
define a weak symbol would share one of the two, with whatever instructions it was compiled to.
"""

import functools
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import fastsoftmax
from fastsoftmax import _dispatch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects"),
    pytest.mark.skipif(not shutil.which("objdump"), reason="no objdump (binutils): objects are NOT checked"),
]
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")

EVERYWHERE = ["_cpu", "_openmp", "_thread_pool", "_testing", "_fastpath"]        # imported on any CPU
MODULES = EVERYWHERE + [f"kernels.{tag}_{isa}" for tag, isa in _dispatch.modules(_dispatch.built())]

# Mnemonics as objdump writes them, with suffixes and operands following.
VEX = r"v[a-z]\w*"                              # AVX and everything after; no other mnemonic of programs begins with v
BMI = r"(andn|bextr|bls[ir]|blsmsk|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|tzcnt|movbe)[lqw]?"
SSE4 = (r"(pshufb|palignr|pabs[bwd]|psign[bwd]|ph(add|sub)s?[wd]|pmulhrsw|pmaddubsw"     # SSSE3
        r"|blendv?p[sd]|pblendvb|pblendw|round[ps][sd]|ptest|pmulld|pmuldq|p(min|max)(sb|sd|uw|ud)|packusdw"
        r"|pmov[sz]x[bwdq]{2}|p(insr|extr)[bdq]|insertps|extractps|dpp[sd]|mpsadbw|pcmpeqq|movntdqa"     # SSE 4.1
        r"|pcmpgtq|pcmp[ei]str[im]|crc32[bwlq]?|popcnt[lqw]?|addsubp[sd]|h(add|sub)p[sd]|lddqu|mov(ddup|s[hl]dup))")
FORBIDDEN = f"({VEX}|{BMI}|{SSE4})"


def path(module):
    # found without being imported: this CPU may not have what is in it
    return importlib.util.find_spec(f"fastsoftmax.{module}").origin


@functools.cache
def instructions(module):
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", path(module)], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^ *[0-9a-f]+:\t(.*)$", text, re.MULTILINE)
    assert len(lines) > 500
    return lines


def found(pattern, module):
    # a prefix such as `rep` or `lock` comes before the mnemonic; `tzcnt` is what objdump calls `rep bsf`
    matcher = re.compile(rf"(?:(?:rep|repz|repnz|lock|notrack|bnd|data16|cs|ds) )*{pattern}(?: |$)")
    return [line for line in instructions(module) if matcher.match(line)]


@x86
@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith(("_v3", "_v4", "_v4_bf16", "_v4_amx"))])
def test_no_newer_instruction(module):
    wrong = found(FORBIDDEN, module)
    assert not wrong, wrong[:5]
    assert not [line for line in instructions(module) if "%ymm" in line or "%zmm" in line]


@x86
@pytest.mark.parametrize("tag", _dispatch.DTYPES)
def test_no_avx_512_in_modules_for_avx2(tag):
    lines = instructions(f"kernels.{tag}_x86_64_v3")
    assert not [line for line in lines if re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]", line)]


@x86
@pytest.mark.parametrize("tag", _dispatch.DTYPES)
def test_what_should_be_there_is_found(tag):
    """Or the tests above would see nothing wherever they look."""
    assert found(VEX, f"kernels.{tag}_x86_64_v3")
    assert [line for line in instructions(f"kernels.{tag}_x86_64_v3") if "%ymm" in line]
    assert [line for line in instructions(f"kernels.{tag}_x86_64_v4") if "%zmm" in line]
    assert found(BMI, f"kernels.{tag}_x86_64_v3")
    assert found("pshufd|shufpd|movmskp[sd]|cvtps2pd", f"kernels.{tag}_x86_64")


@x86
def test_products_of_pairs_are_in_their_own_module_alone():
    assert [m for m in MODULES if found("vdpbf16ps", m)] == ["kernels.bf16_x86_64_v4_bf16"]
    assert [m for m in MODULES if found("(tdpbf16ps|ldtilecfg|tileloadd)", m)] == ["kernels.bf16_x86_64_v4_amx"]
    assert not found(r"v(cvtne2?ps2bf16|dpbf16ps)[xyz]?", "kernels.bf16_x86_64_v4")


@pytest.mark.skipif(not shutil.which("nm"), reason="nm (binutils) is not installed: symbols are NOT checked")
@pytest.mark.parametrize("module", MODULES)
def test_a_module_defines_its_entry_alone(module):
    symbols = subprocess.run(["nm", "-D", "--defined-only", path(module)], capture_output=True, text=True, check=True)
    names = {line.split()[-1].partition("@")[0] for line in symbols.stdout.splitlines()}
    assert names == {f"PyInit_{module.rpartition('.')[2]}"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_needs_the_c_library_and_openmp_alone(module):
    """No C++, nothing else that a wheel would have to bring along; no executable stack."""
    dynamic = subprocess.run(["objdump", "-p", path(module)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED +(\S+)", dynamic))
    assert all(re.match(r"(libc|libm|libpthread|libgomp|libomp|ld-linux[\w-]*)\.so", name) for name in needed), needed
    assert re.search(r"STACK .*\n.* flags rw-\n", dynamic)
    assert "TEXTREL" not in dynamic


@x86
def test_all_modules_are_less_than_8_megabytes_in_a_wheel():
    """Beside 0.4 MB of Python. The kernels are compiled 12 times: what one grows by, the wheel does 12 times."""
    compiler = fastsoftmax.show_config("dicts")["compiler"]
    sections = subprocess.run(["objdump", "-h", path(MODULES[-1])], capture_output=True, text=True, check=True).stdout
    if not compiler.startswith("GCC") or ".debug_info" in sections:
        pytest.skip(f"the figure is that of release builds by GCC, not of {compiler}")
    assert sum(len(zlib.compress(Path(path(module)).read_bytes())) for module in MODULES) < 7.6e6
