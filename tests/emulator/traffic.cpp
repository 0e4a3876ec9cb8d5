// traffic.cpp - counts what a kernel moves. Linked in place of ThreadSanitizer's runtime: g++ calls one
// of the functions below at each load and store of code compiled with -fsanitize=thread.
//   Registered buffers are the card's memory; an access near but outside one is counted as stray; stacks
//   are registers and not counted.
//   A request is the same instruction (by its return address), executed the n-th time, in the lanes of
//   one warp. It costs one sector for each 32 bytes of memory that it touches; the least possible is
//   its bytes / 32. The quotient says how well the accesses of a warp lie together.
//   A request to shared memory costs wavefronts. There are 32 banks of 4 bytes. Lanes that touch the same
//   word share it; other words of one bank come one after another. Accesses of 8 bytes are served by half
//   warps and those of 16 bytes by quarters, so that 2 and 4 wavefronts are the least for a full warp.
#include <dlfcn.h>
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>
#include "include/cuda_names.h"

namespace {

constexpr size_t SECTOR = 32, NEAR = 4096, BANKS = 32;

struct Buffer {
    uintptr_t begin, end;
    size_t read, written, widest, sectors, least_sectors;
};
struct Request {
    int buffer;
    size_t bytes;
    std::vector<uintptr_t> sectors;
};
// Of an instruction that touches shared memory.
struct Banked {
    size_t bytes, store, requests, wavefronts, least, worst;
};
struct SharedRequest {
    size_t bytes;
    bool store;
    std::vector<std::pair<unsigned, uintptr_t>> lanes;  // and the address of each
};
using Key = std::pair<std::pair<unsigned, uintptr_t>, unsigned>;  // (warp, instruction), execution

std::vector<Buffer> buffers;
std::map<Key, Request> requests;
std::map<Key, SharedRequest> shared_requests;
std::map<uintptr_t, Banked> banked;  // by instruction
std::unordered_map<uintptr_t, unsigned> executions;  // by instruction and thread
size_t strays;
bool counting;

// Which request of its warp this access of the current thread belongs to.
Key request_of(uintptr_t instruction) {
    unsigned thread = emu::current->place();
    unsigned execution = executions[instruction * emu::MAX_CLUSTER * emu::MAX_THREADS + thread]++;
    return {{thread / 32, instruction}, execution};
}

void count_request(int buffer, uintptr_t address, size_t size, uintptr_t instruction) {
    Request& request = requests[request_of(instruction)];
    request.buffer = buffer;
    request.bytes += size;
    for (uintptr_t s = address / SECTOR; s <= (address + size - 1) / SECTOR; ++s) {
        bool known = false;
        for (uintptr_t other : request.sectors) known |= other == s;
        if (!known) request.sectors.push_back(s);
    }
}

bool in_shared_memory(uintptr_t address) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(emu::windows);
    return address >= begin && address < begin + sizeof(emu::Window) * emu::cluster_size;
}

// An access of more than 16 bytes, as of a struct, is several of up to 16.
void count_shared(uintptr_t address, size_t size, bool store, uintptr_t instruction) {
    for (size_t done = 0; done < size;) {
        size_t bytes = size - done < 16 ? size - done : 16;
        SharedRequest& request = shared_requests[request_of(instruction)];
        request.bytes = bytes;
        request.store = store;
        request.lanes.push_back({emu::current->place() % 32, address + done});
        done += bytes;
    }
}

// The wavefronts of the lanes from `first` on, `count` of them; 0 if none of them takes part.
size_t wavefronts(const SharedRequest& request, unsigned first, unsigned count) {
    std::vector<uintptr_t> words[BANKS];
    size_t most = 0;
    for (auto [lane, address] : request.lanes) {
        if (lane < first || lane >= first + count) continue;
        for (uintptr_t word = address / 4; word <= (address + request.bytes - 1) / 4; ++word) {
            std::vector<uintptr_t>& bank = words[word % BANKS];
            bool known = false;
            for (uintptr_t other : bank) known |= other == word;
            if (!known) bank.push_back(word);
            most = bank.size() > most ? bank.size() : most;
        }
    }
    return most;
}

void finish_shared(uintptr_t instruction, const SharedRequest& request) {
    unsigned group = request.bytes > 8 ? 8 : request.bytes > 4 ? 16 : 32;
    size_t all = 0, least = 0;
    for (unsigned first = 0; first < 32; first += group) {
        size_t cost = wavefronts(request, first, group);
        all += cost;
        least += cost > 0;
    }
    Banked& sum = banked[instruction];
    sum.bytes = request.bytes > sum.bytes ? request.bytes : sum.bytes;
    sum.store = request.store;
    sum.requests += 1;
    sum.wavefronts += all;
    sum.least += least;
    sum.worst = all > sum.worst ? all : sum.worst;
}

void touch(const volatile void* p, size_t size, bool store, void* instruction) {
    if (!counting || emu::current == nullptr || emu::copies_arrive) return;
    uintptr_t address = reinterpret_cast<uintptr_t>(p);
    if (in_shared_memory(address)) {
        count_shared(address, size, store, reinterpret_cast<uintptr_t>(instruction));
        return;
    }
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
    banked.clear();
    strays = 0;
    counting = true;
}
void emu_traffic_register(uintptr_t begin, size_t size) { buffers.push_back({begin, begin + size, 0, 0, 0, 0, 0}); }
void emu_traffic_cluster_ended() {
    for (auto& [key, request] : requests) {
        buffers[size_t(request.buffer)].sectors += request.sectors.size();
        buffers[size_t(request.buffer)].least_sectors += (request.bytes + SECTOR - 1) / SECTOR;
    }
    for (auto& [key, request] : shared_requests) finish_shared(key.first.second, request);
    requests.clear();
    shared_requests.clear();
    executions.clear();
}
// Seven numbers for each instruction that touched shared memory; call it with null for their count.
size_t emu_traffic_shared(size_t* out) {
    for (const auto& [instruction, sum] : banked) {
        if (out == nullptr) break;
        Dl_info library;
        dladdr(reinterpret_cast<void*>(instruction), &library);
        size_t offset = instruction - reinterpret_cast<uintptr_t>(library.dli_fbase);
        for (size_t value : {offset, sum.bytes, sum.store, sum.requests, sum.wavefronts, sum.least, sum.worst})
            *out++ = value;
    }
    return banked.size();
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
    type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {                        \
        touch(const_cast<type*>(p), bits / 8, true, __builtin_return_address(0));                \
        return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);                                       \
    }                                                                                            \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* want, type v, int, int) { \
        touch(p, sizeof(type), true, __builtin_return_address(0));                               \
        return __atomic_compare_exchange_n(p, want, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    }
ATOMIC(32, uint32_t) ATOMIC(64, uint64_t)

}  // extern "C"
