// fiber.h - one stack for each CUDA thread of a block, and the switch between two of them.
//   Told to the sanitizers, which otherwise take another stack for a stray pointer (AddressSanitizer)
//   or all threads for one (ThreadSanitizer). x86-64 only: elsewhere the switch would be swapcontext's,
//   a system call each time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

// Of the scheduler nothing may be instrumented: its own accesses are not the kernel's.
#define EMU_BARE __attribute__((no_sanitize("address", "thread", "undefined"), noinline))
#define EMU_WEAK __attribute__((weak))  // these exist only in the sanitizers' runtimes

extern "C" {
EMU_WEAK void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
EMU_WEAK void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
EMU_WEAK void __asan_unpoison_memory_region(const volatile void*, size_t);
EMU_WEAK void __asan_poison_memory_region(const volatile void*, size_t);
EMU_WEAK void* __tsan_create_fiber(unsigned);
EMU_WEAK void* __tsan_get_current_fiber();
EMU_WEAK void __tsan_switch_to_fiber(void*, unsigned);
EMU_WEAK void __tsan_acquire(void*);
EMU_WEAK void __tsan_release(void*);
void emu_switch(void** save, void* load);
}

#ifndef __x86_64__
#error "the emulator's switch of stacks is written for x86-64"
#endif
// The six registers that a callee must keep, then the stack pointers are exchanged.
__asm__(R"(
.text
.weak emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emu_switch, .-emu_switch
)");

namespace emu {

constexpr size_t STACK = size_t(128) << 10, GUARD = 4096;
constexpr unsigned MAX_THREADS = 1024;  // of a block

struct Fiber {
    void* sp = nullptr;
    char* stack = nullptr;  // null: the caller's own thread
    size_t size = 0;
    void* asan = nullptr;   // AddressSanitizer's record of this stack while another runs
    void* tsan = nullptr;   // ThreadSanitizer's thread

    // Ready to run `entry` from the start. Stacks at equal offsets in a page would share cache sets.
    EMU_BARE void prepare(void (*entry)(), unsigned number) {
        if (stack == nullptr) {
            void* memory = mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            // A guard is a mapping of its own, and a process may have 65,530: 512 in each library that
            // is loaded. So only the sanitizers, which load few, have guards.
            bool guarded = __asan_unpoison_memory_region || __tsan_create_fiber;
            if (memory == MAP_FAILED || (guarded && mprotect(memory, GUARD, PROT_NONE) != 0)) {
                perror("emulator: no stack");
                abort();
            }
            stack = static_cast<char*>(memory) + GUARD;
            size = STACK;
            if (__tsan_create_fiber) tsan = __tsan_create_fiber(0);
        }
        // What ran here before never returned from its frames; their red zones are still marked.
        if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack, size);
        void** top = reinterpret_cast<void**>(stack + size - number % 61 * 448 - 64);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        sp = top;
    }
};

// The fibers of a process. Each library has a place for them; module.py gives all libraries those of
// the first, since the mappings of stacks, and ThreadSanitizer's threads, are limited.
inline Fiber own_fibers[8 * MAX_THREADS];
inline Fiber* shared_fibers = own_fibers;
EMU_BARE inline Fiber* fibers() { return shared_fibers; }

EMU_BARE inline void acquire(void* what) { if (__tsan_acquire) __tsan_acquire(what); }
EMU_BARE inline void release(void* what) { if (__tsan_release) __tsan_release(what); }

EMU_BARE inline void switch_fiber(Fiber& from, Fiber& to, bool from_ends) {
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.asan, to.stack, to.size);
    // Flag 1: a switch orders nothing between two threads; only barriers do.
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan, 1);
    emu_switch(&from.sp, to.sp);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);
}

}  // namespace emu

extern "C" __attribute__((visibility("default"), used)) inline void* emu_fibers(void* others) {
    if (others != nullptr) emu::shared_fibers = static_cast<emu::Fiber*>(others);
    return emu::shared_fibers;
}
