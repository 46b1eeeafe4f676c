// Run-length encoding of masks on the CPU: masks as tasks, each to its own string, then all strings
// one after the other.

#include "kernels/encode_masks.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "../common.h"

namespace fastinst {
namespace {

using namespace encode_masks;

// COCO's string of runs: their lengths, from the fourth on less the one two before, each as digits
// of 5 bits from the lowest on, with a sixth bit if more follow, as characters from '0' on.
class Runs {
 public:
  void add(int64_t length) {
    int64_t rest = count_ > 2 ? length - earlier_ : length;
    bool more = true;
    while (more) {
      const int64_t digit = rest & 0x1f;
      rest >>= 5;
      // The last digit's highest bit is the sign.
      more = rest != (digit & 0x10 ? -1 : 0);
      text_.push_back(char(48 + (more ? digit | 0x20 : digit)));
    }
    earlier_ = last_;
    last_ = length;
    ++count_;
  }

  std::string take() { return std::move(text_); }

 private:
  std::string text_;
  int64_t count_ = 0, last_ = 0, earlier_ = 0;
};

std::string encode(const Params& params, int64_t mask) {
  const int64_t words = (params.height + kBlock - 1) / kBlock;
  thread_local std::vector<uint64_t> columns;
  columns.resize(kBlock * words);
  Runs runs;
  int64_t start = 0;      // of the present run, in pixels down the columns
  uint64_t previous = 0;  // pixel; the first run is of zeros, if need be of none
  for (int64_t first = 0; first < params.width; first += kBlock) {
    FASTINST_CALL(gather_columns, params, mask, first, columns.data());
    const int64_t count = std::min(kBlock, params.width - first);
    for (int64_t x = 0; x < count; ++x) {
      for (int64_t word = 0; word < words; ++word) {
        const uint64_t bits = columns[x * words + word];
        const int64_t rows = std::min(kBlock, params.height - word * kBlock);
        uint64_t changes = (bits ^ (bits << 1 | previous)) & ~uint64_t(0) >> (kBlock - rows);
        previous = bits >> (rows - 1) & 1;
        const int64_t place = (first + x) * params.height + word * kBlock;
        for (; changes != 0; changes &= changes - 1) {
          const int64_t change = place + __builtin_ctzll(changes);
          runs.add(change - start);
          start = change;
        }
      }
    }
  }
  runs.add(params.height * params.width - start);
  return runs.take();
}

std::tuple<Tensor, Tensor> encode_masks_cpu(Tensor masks, int64_t width) {
  const Tensor rows = torch::stable::contiguous(masks);
  const bool packed = rows.scalar_type() == ScalarType::Int;
  if (!packed) expect_dtype("masks", rows, ScalarType::Bool);
  STD_TORCH_CHECK(width >= 0, "width must not be negative");
  expect_shape("masks", rows, {rows.size(0), rows.size(1), packed ? (width + 31) / 32 : width});
  const Params params{packed, rows.data_ptr(), rows.size(1), width};
  std::vector<std::string> texts(rows.size(0));
  torch::stable::parallel_for(0, rows.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t mask = begin; mask < end; ++mask) texts[mask] = encode(params, mask);
  });

  Tensor lengths = torch::stable::new_empty(rows, {rows.size(0)}, ScalarType::Long);
  int64_t total = 0;
  for (size_t mask = 0; mask < texts.size(); ++mask) {
    static_cast<int64_t*>(lengths.data_ptr())[mask] = int64_t(texts[mask].size());
    total += int64_t(texts[mask].size());
  }
  Tensor text = torch::stable::new_empty(rows, {total}, ScalarType::Byte);
  char* to = static_cast<char*>(text.data_ptr());
  for (const std::string& one : texts) to = std::copy(one.begin(), one.end(), to);
  return {text, lengths};
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("encode_masks", TORCH_BOX(&fastinst::encode_masks_cpu));
}
