// traffic.cpp - counts what a kernel moves. Linked in place of ThreadSanitizer's runtime: g++ calls one
// of the functions below at each load and store of code compiled with -fsanitize=thread.
//   Registered buffers are the card's memory; an access near but outside one is counted as stray; the
//   rest (stacks, shared memory) is on the chip and not counted.
//   A request is the same instruction (by its return address), executed the n-th time, in the lanes of
//   one warp. It costs one sector for each 32 bytes of memory that it touches; the least possible is
//   its bytes / 32. The quotient says how well the accesses of a warp lie together.
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>
#include "include/cuda_names.h"

namespace {

constexpr size_t SECTOR = 32, NEAR = 4096;

struct Buffer {
    uintptr_t begin, end;
    size_t read, written, widest, sectors, least_sectors;
};
struct Request {
    int buffer;
    size_t bytes;
    std::vector<uintptr_t> sectors;
};
using Key = std::pair<std::pair<unsigned, uintptr_t>, unsigned>;  // (warp, instruction), execution

std::vector<Buffer> buffers;
std::map<Key, Request> requests;
std::unordered_map<uintptr_t, unsigned> executions;  // by instruction and thread
size_t strays;
bool counting;

void count_request(int buffer, uintptr_t address, size_t size, uintptr_t instruction) {
    unsigned thread = emu::current->place();
    unsigned execution = executions[instruction * emu::MAX_CLUSTER * emu::MAX_THREADS + thread]++;
    Request& request = requests[{{thread / 32, instruction}, execution}];
    request.buffer = buffer;
    request.bytes += size;
    for (uintptr_t s = address / SECTOR; s <= (address + size - 1) / SECTOR; ++s) {
        bool known = false;
        for (uintptr_t other : request.sectors) known |= other == s;
        if (!known) request.sectors.push_back(s);
    }
}

void touch(const volatile void* p, size_t size, bool store, void* instruction) {
    if (!counting || emu::current == nullptr) return;
    uintptr_t address = reinterpret_cast<uintptr_t>(p);
    for (size_t i = 0; i < buffers.size(); ++i) {
        Buffer& b = buffers[i];
        if (address >= b.begin && address + size <= b.end) {
            (store ? b.written : b.read) += size;
            b.widest = size > b.widest ? size : b.widest;
            count_request(int(i), address, size, reinterpret_cast<uintptr_t>(instruction));
            return;
        }
    }
    const emu::Fiber& own = *emu::current->fiber;
    uintptr_t stack = reinterpret_cast<uintptr_t>(own.stack);
    if (address >= stack && address < stack + own.size) return;
    for (Buffer& b : buffers)
        if (address + NEAR >= b.begin && address < b.end + NEAR) {
            ++strays;
            return;
        }
}

}  // namespace

extern "C" {
#pragma GCC visibility push(default)

void emu_traffic_start() {
    buffers.clear();
    strays = 0;
    counting = true;
}
void emu_traffic_register(uintptr_t begin, size_t size) { buffers.push_back({begin, begin + size, 0, 0, 0, 0, 0}); }
void emu_traffic_cluster_ended() {
    for (auto& [key, request] : requests) {
        buffers[size_t(request.buffer)].sectors += request.sectors.size();
        buffers[size_t(request.buffer)].least_sectors += (request.bytes + SECTOR - 1) / SECTOR;
    }
    requests.clear();
    executions.clear();
}
// Five numbers for each buffer: read, written, widest access, sectors, least sectors. Returns strays.
size_t emu_traffic_stop(size_t* out) {
    counting = false;
    for (const Buffer& b : buffers)
        for (size_t value : {b.read, b.written, b.widest, b.sectors, b.least_sectors}) *out++ = value;
    return strays;
}

#define HOOK(size)                                                                             \
    void __tsan_read##size(void* p) { touch(p, size, false, __builtin_return_address(0)); }    \
    void __tsan_write##size(void* p) { touch(p, size, true, __builtin_return_address(0)); }    \
    void __tsan_unaligned_read##size(void* p) { touch(p, size, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##size(void* p) { touch(p, size, true, __builtin_return_address(0)); }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
void __tsan_read_range(void* p, size_t n) { touch(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { touch(p, n, true, __builtin_return_address(0)); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
    touch(from, n, false, __builtin_return_address(0));
    touch(to, n, true, __builtin_return_address(0));
    return __builtin_memcpy(to, from, n);
}
void* __tsan_memset(void* to, int byte, size_t n) {
    touch(to, n, true, __builtin_return_address(0));
    return __builtin_memset(to, byte, n);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

#define ATOMIC(bits, type)                                                                       \
    type __tsan_atomic##bits##_load(const volatile type* p, int) {                               \
        touch(p, sizeof(type), false, __builtin_return_address(0));                              \
        return __atomic_load_n(p, __ATOMIC_RELAXED);                                             \
    }                                                                                            \
    void __tsan_atomic##bits##_store(volatile type* p, type v, int) {                            \
        touch(const_cast<type*>(p), bits / 8, true, __builtin_return_address(0));                \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                \
    }                                                                                            \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* want, type v, int, int) { \
        touch(p, sizeof(type), true, __builtin_return_address(0));                               \
        return __atomic_compare_exchange_n(p, want, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    }
ATOMIC(32, uint32_t) ATOMIC(64, uint64_t)

}  // extern "C"
