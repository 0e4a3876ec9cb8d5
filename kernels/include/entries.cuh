// entries.cuh - one extern "C" entry for each formula and dtype.
//   Every .cu file ends with a table  FOR_EACH_...(ENTRY)  of its entries. Compiled as it is, it
//   holds all of them; with -DONLY_FORMULA=relu and -DONLY_DTYPE=f32 just the one named, which is how
//   the backend compiles an entry at its first use, in a few dozen milliseconds.
#pragma once

#ifdef ONLY_DTYPE
#define FOR_EACH_DTYPE(ENTRY, FORMULA) ENTRY(FORMULA, ONLY_DTYPE)
#define FOR_EACH_COMPUTE_DTYPE(ENTRY, FORMULA) ENTRY(FORMULA, ONLY_DTYPE)
#else
#define FOR_EACH_DTYPE(ENTRY, FORMULA) \
    ENTRY(FORMULA, f64) ENTRY(FORMULA, f32) ENTRY(FORMULA, f16) ENTRY(FORMULA, bf16)
#define FOR_EACH_COMPUTE_DTYPE(ENTRY, FORMULA) ENTRY(FORMULA, f64) ENTRY(FORMULA, f32)
#endif
