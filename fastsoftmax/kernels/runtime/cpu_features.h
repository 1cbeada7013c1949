/* The compiler, and the instruction sets of this CPU. Compiled for the baseline. */
#pragma once
#if defined(_MSC_VER)
#define COMPILER "MSVC"
#elif defined(__clang__)
#define COMPILER "Clang " __clang_version__
#else
#define COMPILER "GCC " __VERSION__
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#define SUPPORTS(feature) (__builtin_cpu_init(), __builtin_cpu_supports(feature) != 0)
/* Not every compiler knows F16C by name: Clang 14 does not. Its registers are AVX's, so the test for AVX tells
   whether the operating system saves them. */
static int supports_f16c(void) {
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
/* Likewise: by its number, and AVX-512's registers are tested elsewhere. Leaf 7 says which subleaves there are. */
static int supports_avx512_bf16(void) {
    unsigned int a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)
        && (a >> 5 & 1) != 0;
}
/* AMX has registers of 8 kilobytes, which Linux gives a process that asks for them; threads that use none have none.
 * It refuses where a thread's alternate signal stack has no room for them. */
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
static int supports_amx_bf16(void) {
    unsigned int a, b, c, d;
    enum { REQUEST = 0x1023, TILE_DATA = 18, BF16 = 1 << 22, TILE = 1 << 24 };   /* arch_prctl; leaf 7's bits */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE)
        && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#else
static int supports_amx_bf16(void) { return 0; }
#endif
#else
#define SUPPORTS(feature) 0
static int supports_f16c(void) { return 0; }
static int supports_avx512_bf16(void) { return 0; }
static int supports_amx_bf16(void) { return 0; }
#endif
/* The psABI's levels, spelled out where a compiler may not know their names. */
static int supports_v3(void) {
    return SUPPORTS("ssse3") && SUPPORTS("sse4.1") && SUPPORTS("sse4.2") && SUPPORTS("popcnt") && SUPPORTS("avx")
        && SUPPORTS("avx2") && SUPPORTS("bmi") && SUPPORTS("bmi2") && SUPPORTS("fma") && supports_f16c();
}
static int supports_v4(void) {
    return supports_v3() && SUPPORTS("avx512f") && SUPPORTS("avx512bw") && SUPPORTS("avx512cd")
        && SUPPORTS("avx512dq") && SUPPORTS("avx512vl");
}
static int supports_v4_bf16(void) { return supports_v4() && supports_avx512_bf16(); }
static int supports_v4_amx(void) { return supports_v4_bf16() && supports_amx_bf16(); }
