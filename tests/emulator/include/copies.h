// copies.h - asynchronous copies from global to shared memory (cp.async).
//   Between the start of a copy and the wait for its group the destination is NaN, so a missing wait
//   shows in every run. It must be so at the wait: the copy may have arrived before what wrote there. The
//   source is read at the start and must be the same at the wait: on the card it may be read at any moment
//   between.
#pragma once
#include "shared.h"

namespace emu {

struct Copy {
    unsigned char *to, data[16];
    const unsigned char* from;
    unsigned bytes, group;
    Copy* next;
};

constexpr size_t MAX_COPIES = size_t(1) << 20;  // at once, in a cluster
inline Copy *copy_storage, *free_copies;
inline size_t copies_used;

EMU_BARE inline Copy* new_copy() {
    if (copy_storage == nullptr) {
        void* memory = mmap(nullptr, MAX_COPIES * sizeof(Copy), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) EMU_FAIL("no memory for asynchronous copies");
        copy_storage = static_cast<Copy*>(memory);
    }
    Copy* copy = free_copies;
    if (copy != nullptr) {
        free_copies = copy->next;
        return copy;
    }
    if (copies_used == MAX_COPIES) EMU_FAIL("more than %zu asynchronous copies in flight", MAX_COPIES);
    return copy_storage + copies_used++;
}

EMU_BARE inline void check_copy(const void* to, const void* from, unsigned bytes) {
    if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
        EMU_FAIL("asynchronous copy of %u bytes between misaligned addresses", bytes);
    if (!in_own_window(to)) EMU_FAIL("asynchronous copy to an address outside the block's shared memory");
}

EMU_BARE inline void start_copy(void* to, const void* from, const void* data, unsigned bytes) {
    Copy* copy = new_copy();
    copy->to = static_cast<unsigned char*>(to);
    copy->from = static_cast<const unsigned char*>(from);
    copy->bytes = bytes;
    copy->group = current->copy_group;
    copy->next = nullptr;
    for (unsigned i = 0; i < bytes; ++i) copy->data[i] = static_cast<const unsigned char*>(data)[i];
    (current->last_copy == nullptr ? current->copies : current->last_copy->next) = copy;
    current->last_copy = copy;
}

// The oldest copy of a committed group, the youngest `pending` groups left out; false if there is none.
EMU_BARE inline bool take_copy(unsigned pending, void** to, void* data, unsigned* bytes) {
    Copy* copy = current->copies;
    if (copy == nullptr || copy->group + pending >= current->copy_group) return false;
    for (unsigned i = 0; i < copy->bytes; ++i) {
        if (copy->from[i] != copy->data[i]) EMU_FAIL("the source of an asynchronous copy changed before its wait");
        if (copy->to[i] != 0xff) EMU_FAIL("the destination of an asynchronous copy was written before its wait");
        static_cast<unsigned char*>(data)[i] = copy->data[i];
    }
    *to = copy->to;
    *bytes = copy->bytes;
    current->copies = copy->next;
    if (copy->next == nullptr) current->last_copy = nullptr;
    copy->next = free_copies;
    free_copies = copy;
    return true;
}

// Those that a thread never waited for.
EMU_BARE inline void forget_copies() {
    copies_used = 0;
    free_copies = nullptr;
}

template <unsigned BYTES> struct CopyWord;
template <> struct CopyWord<4> { using type = unsigned; };
template <> struct CopyWord<8> { using type = unsigned __attribute__((vector_size(8))); };
template <> struct CopyWord<16> { using type = unsigned __attribute__((vector_size(16))); };

// Inlined and not EMU_BARE: the sanitizers and traffic.cpp see one read of the kernel's, of this width.
template <unsigned BYTES>
__attribute__((always_inline)) inline void copy_async(void* to, const void* from) {
    using Word = typename CopyWord<BYTES>::type;
    check_copy(to, from, BYTES);
    Word data = *static_cast<const Word*>(from);
    start_copy(to, from, &data, BYTES);
    *static_cast<Word*>(to) = ~Word{};
}

// While it is true, traffic.cpp counts nothing: a copy was counted when it was started.
inline bool copies_arrive;
EMU_BARE inline void say_copies_arrive([[maybe_unused]] bool now) {
#ifdef EMU_TRAFFIC
    copies_arrive = now;
#endif
}

inline void wait_for_copies(unsigned pending) {
    alignas(16) unsigned char data[16];
    void* to;
    unsigned bytes;
    say_copies_arrive(true);
    while (take_copy(pending, &to, data, &bytes)) {
        if (bytes == 4) *static_cast<CopyWord<4>::type*>(to) = *reinterpret_cast<CopyWord<4>::type*>(data);
        if (bytes == 8) *static_cast<CopyWord<8>::type*>(to) = *reinterpret_cast<CopyWord<8>::type*>(data);
        if (bytes == 16) *static_cast<CopyWord<16>::type*>(to) = *reinterpret_cast<CopyWord<16>::type*>(data);
    }
    say_copies_arrive(false);
}

EMU_BARE inline void commit_copies() { ++current->copy_group; }

}  // namespace emu
