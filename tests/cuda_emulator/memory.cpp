#include "memory.h"

#include <cstring>
#include <stdexcept>

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

namespace cuda_emulator {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr std::size_t kMaximumThreads = 1024;
constexpr std::size_t kMaximumSharedBytes = 256 << 10;

thread_local volatile char anchor;  // touched, it makes this thread's segment exist

char* reserve(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory for the emulator");
  return static_cast<char*>(memory);
}

struct Segment {
  const void* inside;  // any address of the library
  void* begin;
  std::size_t bytes;
};

int find_segment(dl_phdr_info* info, std::size_t, void* data) {
  auto* segment = static_cast<Segment*>(data);
  const auto address = reinterpret_cast<ElfW(Addr)>(segment->inside);
  bool inside = false;
  std::size_t bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    const ElfW(Addr) start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && address >= start && address < start + header.p_memsz) {
      inside = true;
    }
    if (header.p_type == PT_TLS) bytes = header.p_memsz;
  }
  if (!inside) return 0;
  segment->begin = info->dlpi_tls_data;
  segment->bytes = bytes;
  return 1;
}

}  // namespace

Stack fiber_stack(std::size_t thread) {
  static char* stacks = [] {
    char* memory = reserve(kMaximumThreads * kStackBytes);
    for (std::size_t i = 0; i < kMaximumThreads; ++i) {
      mprotect(memory + i * kStackBytes, getpagesize(), PROT_NONE);
    }
    return memory;
  }();
  return {stacks + thread * kStackBytes, kStackBytes};
}

void DynamicShared::resize(std::size_t bytes) {
  static char* memory = [] {
    char* pages = reserve(kMaximumSharedBytes + 2 * getpagesize());
    mprotect(pages, getpagesize(), PROT_NONE);
    mprotect(pages + getpagesize() + kMaximumSharedBytes, getpagesize(), PROT_NONE);
    return pages + getpagesize();
  }();
  const std::size_t aligned = (bytes + 127) / 128 * 128;
  begin_ = reinterpret_cast<unsigned char*>(memory + kMaximumSharedBytes - aligned);
  bytes_ = bytes;
}

void DynamicShared::fill(unsigned char garbage) { std::memset(begin_, garbage, bytes_); }

void fill_static_shared(const void* kernel, unsigned char garbage) {
  anchor = 0;
  Segment segment{kernel, nullptr, 0};
  dl_iterate_phdr(find_segment, &segment);
  if (segment.begin != nullptr) std::memset(segment.begin, garbage, segment.bytes);
}

}  // namespace cuda_emulator
