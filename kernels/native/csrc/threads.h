// Threads: loops whose items XLA's thread pool and the calling thread divide between them, and scratch memory that a
// thread reuses between calls. No instructions beyond x86-64's own.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

#include "target.h"

namespace ffi = xla::ffi;

// A call's parameter of this type is XLA's thread pool, and none of its arguments.
template <>
struct xla::ffi::CtxBinding<xla::ffi::ThreadPool> {
  using Ctx = ThreadPool;
};

ROOST_TARGET_BEGIN
namespace {

// Consecutive items. The thread that owns them takes the first, and other threads take the last.
class alignas(64) Range {
 public:
  void Set(uint32_t begin, uint32_t end) { ends_.store(uint64_t{begin} << 32 | end, std::memory_order_relaxed); }
  int64_t TakeFirst() { return Take(uint64_t{1} << 32, 0); }
  int64_t TakeLast() { return Take(0, 1); }

 private:
  // Moves the ends, and returns the item that this removes, or -1 if there is none.
  int64_t Take(uint64_t begins, uint32_t ends) {
    uint64_t old = ends_.load(std::memory_order_relaxed);
    while (old >> 32 < static_cast<uint32_t>(old)) {
      if (ends_.compare_exchange_weak(old, old + begins - ends, std::memory_order_relaxed)) {
        return begins ? old >> 32 : static_cast<uint32_t>(old) - 1;
      }
    }
    return -1;
  }

  std::atomic<uint64_t> ends_{0};  // the begin in the upper half
};

// Items of one call, split into a range for each thread. A thread whose range is empty takes from the others' ends.
struct Shared {
  Shared(int64_t count, int64_t threads) : ranges(threads) {
    for (int64_t t = 0; t < threads; ++t) ranges[t].Set(count * t / threads, count * (t + 1) / threads);
  }

  int64_t Take(int64_t thread) {
    int64_t item = ranges[thread].TakeFirst();
    for (size_t other = 1; item < 0 && other < ranges.size(); ++other) {
      item = ranges[(thread + other) % ranges.size()].TakeLast();
    }
    return item;
  }

  std::vector<Range> ranges;
  std::atomic<int64_t> done{0};
};

// Calls work(i) for i in [0, count), on the pool's threads and on this one. A thread's items are mostly consecutive.
// The caller waits only for items that a thread has started, so busy pool threads cost speed but cannot block it.
template <typename Work>
void ForEach(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), count));
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  auto shared = std::make_shared<Shared>(count, threads);
  auto take = [shared, &work](int64_t thread) {
    for (int64_t i = shared->Take(thread); i >= 0; i = shared->Take(thread)) {
      work(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t t = 1; t < threads; ++t) {
    pool.Schedule([take, t] { take(t); });  // a late thread finds no item and never touches `work`
  }
  take(0);
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < count; ++spins) {
    spins < 4096 ? _mm_pause() : std::this_thread::yield();
  }
}

// A cache line, for scratch buffers whose vectors are aligned.
struct alignas(64) Line {
  uint8_t bytes[64];
};

// Grows a scratch buffer that is reused between calls to at least `count` elements.
template <typename T>
void Grow(std::vector<T>& scratch, int64_t count) {
  if (static_cast<int64_t>(scratch.size()) < count) scratch.resize(count);
}

// Calls work(r) for every row. A thread takes several rows at a time: its share of them, between two bounds.
template <typename Work>
void ForEachRow(ffi::ThreadPool& pool, int64_t rows, int64_t inputs, const Work& work) {
  constexpr int64_t kLeast = 8192, kMost = 32768;  // elements; fewer take less time than waking a thread
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t some = std::clamp((rows + threads - 1) / threads, std::max(int64_t{1}, kLeast / inputs),
                                  std::max(int64_t{1}, kMost / inputs));
  ForEach(pool, (rows + some - 1) / some, [=, &work](int64_t i) {
    for (int64_t r = i * some; r < std::min(rows, (i + 1) * some); ++r) work(r);
  });
}

}  // namespace
ROOST_TARGET_END
