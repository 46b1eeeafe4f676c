#include "attention.h"

#include <cmath>

#include "../kernels/attention_backward.cuh"

namespace fastinst {
namespace {

// In memory [B, tokens, heads, channels], which is what the projections before and after have.
Tensor empty_like_heads(const Tensor& x) {
  return empty_heads(x, x.size(0), x.size(1), x.size(2), x.size(3));
}

// Of a tensor that in_vectors() has filled up, the channels that are meant.
Tensor without_padding(Tensor filled, int64_t channels) {
  if (filled.size(3) == channels) return filled;
  Tensor result =
      empty_heads(filled, filled.size(0), filled.size(1), filled.size(2), channels);
  torch::stable::copy_(result, torch::stable::narrow(filled, 3, 0, channels));
  return result;
}

// The dtype that kernels compute in: bfloat16 only where tensor cores have it.
ScalarType kernel_type(const Tensor& x) {
  const bool lacks = x.scalar_type() == ScalarType::BFloat16 && !multiplies_bfloat16();
  return lacks ? ScalarType::Float : x.scalar_type();
}

HeadShape shape_of(const Tensor& x) {
  return {static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), static_cast<int>(x.size(3))};
}

// Room for what the blocks of each chunk leave, in the type that sums are kept in.
Tensor workspace(const Tensor& like, Sizes sizes) {
  return torch::stable::new_empty(like, sizes, accumulate_type(like.scalar_type()));
}

template <typename T>
AttentionParams<T> params_of(const Tensor& query, const Tensor& key, const Attend& attend,
                             double scale) {
  AttentionParams<T> params{};
  params.shape = shape_of(query);
  params.query = heads_of<T>(query);
  params.key = heads_of<T>(key);
  params.attend = attend;
  params.scale = static_cast<Accumulate<T>>(scale * M_LOG2E);
  params.chunk_columns = attention_chunk_columns<T>(
      params.shape, params.query.tokens, params.key.tokens, multiprocessor_count());
  return params;
}

template <typename T>
void forward(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& output,
             const Attend& attend, double scale, cudaStream_t stream) {
  AttentionParams<T> params = params_of<T>(query, key, attend, scale);
  params.value = heads_of<T>(value);
  params.output = heads_of<T, T>(output);
  const int64_t chunks = params.chunks();
  std::optional<Tensor> sums, statistics;
  if (chunks > 1) {
    sums = workspace(query, {chunks, query.size(0), query.size(1), query.size(2), query.size(3)});
    statistics = workspace(query, {chunks, query.size(0), query.size(1), query.size(2), 2});
    params.partial_sums = data<Accumulate<T>>(*sums);
    params.partial_statistics = data<Accumulate<T>>(*statistics);
  }
  launch_attention(params, stream);
}

// Where the gradients of rows go, and room for their parts.
template <typename T>
struct Target {
  RowGradients<T> gradients{};
  std::optional<Tensor> parts;

  Target(const Tensor& first, const Tensor* second, int64_t columns) {
    const int64_t batch = first.size(0), heads = first.size(1), rows = first.size(2);
    const int64_t channels = first.size(3);
    const int64_t blocks = batch * heads * ceil_div<int64_t>(channels, kSlice) *
                           ceil_div<int64_t>(rows, GradientBlock<T>::kRows);
    gradients.first = heads_of<T, T>(first);
    if (second) gradients.second = heads_of<T, T>(*second);
    gradients.chunk_columns =
        columns_of_chunk(blocks, static_cast<int>(columns), multiprocessor_count());
    const int64_t chunks = ceil_div<int64_t>(columns, gradients.chunk_columns);
    if (chunks == 1) return;
    parts = workspace(first, {second ? 2 : 1, chunks, batch, heads, rows, channels});
    gradients.partial_first = data<Accumulate<T>>(*parts);
    if (second) gradients.partial_second = gradients.partial_first + parts->numel() / 2;
  }
};

template <typename T>
void backward(const Tensor& grad, const Tensor& output, const Tensor& query, const Tensor& key,
              const Tensor& value, const Tensor& grad_query, const Tensor& grad_key,
              const Tensor& grad_value, const Attend& attend, double scale, cudaStream_t stream) {
  const int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2);
  AttentionParams<T> statistics = params_of<T>(query, key, attend, scale);
  const Tensor partial = workspace(query, {statistics.chunks(), batch, heads, queries, 2});
  statistics.partial_statistics = data<Accumulate<T>>(partial);
  launch_attention(statistics, stream);

  const Tensor query_statistics = workspace(query, {3, batch, heads, queries});
  const Tensor largest_grad = torch::stable::new_zeros(query, {1}, ScalarType::Int);
  AttentionGradientParams<T> params{};
  params.shape = statistics.shape;
  params.query = statistics.query;
  params.key = statistics.key;
  params.value = heads_of<T>(value);
  params.grad = heads_of<T>(grad);
  params.output = heads_of<T>(output);
  params.attend = attend;
  params.scale = static_cast<Accumulate<T>>(scale);
  params.score_scale = statistics.scale;
  params.partial_statistics = statistics.partial_statistics;
  params.statistics_chunks = statistics.chunks();
  params.query_statistics = data<Accumulate<T>>(query_statistics);
  params.largest_grad = data<int>(largest_grad);
  const Target<T> of_queries(grad_query, nullptr, key.size(2));
  const Target<T> of_keys(grad_key, &grad_value, queries);
  launch_attention_gradient(params, of_queries.gradients, of_keys.gradients, stream);
}

}  // namespace

Tensor in_vectors(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1, excess = tensor.size(last) % 8;
  // pad() may return any strides: heads that lie like channels-last images stay so.
  const Tensor filled = excess ? torch::stable::pad(tensor, {0, 8 - excess}) : tensor;
  bool is_aligned = filled.stride(last) == 1;
  for (int64_t i = 0; i < last; ++i) {
    is_aligned &= filled.stride(i) * filled.element_size() % 16 == 0;
  }
  return aligned(is_aligned ? filled : torch::stable::contiguous(filled));
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const Attend& attend, cudaStream_t stream) {
  const ScalarType dtype = query.scalar_type(), type = kernel_type(query);
  const auto prepared = [&](const Tensor& x) { return in_vectors(to_dtype(x, type)); };
  const Tensor q = prepared(query), k = prepared(key), v = prepared(value);
  Tensor output = empty_like_heads(q);
  if (output.numel() > 0) {
    const double scale = 1 / std::sqrt(static_cast<double>(query.size(3)));
    dispatch(type, [&](auto tag) {
      forward<typename decltype(tag)::Type>(q, k, v, output, attend, scale, stream);
    });
  }
  return to_dtype(without_padding(output, query.size(3)), dtype);
}

std::tuple<Tensor, Tensor, Tensor> attention_gradient(const Tensor& grad, const Tensor& output,
                                                      const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const Attend& attend,
                                                      cudaStream_t stream) {
  const ScalarType dtype = query.scalar_type(), type = kernel_type(query);
  const auto prepared = [&](const Tensor& x) { return in_vectors(to_dtype(x, type)); };
  const Tensor q = prepared(query), k = prepared(key), v = prepared(value);
  Tensor grad_q = empty_like_heads(q), grad_k = empty_like_heads(k), grad_v = empty_like_heads(v);
  if (q.numel() > 0) {
    const double scale = 1 / std::sqrt(static_cast<double>(query.size(3)));
    const Tensor g = prepared(grad), o = prepared(output);
    dispatch(type, [&](auto tag) {
      backward<typename decltype(tag)::Type>(g, o, q, k, v, grad_q, grad_k, grad_v, attend, scale,
                                             stream);
    });
  } else {
    // No query attends to anything.
    torch::stable::zero_(grad_k);
    torch::stable::zero_(grad_v);
  }
  const auto finished = [&](const Tensor& x) {
    return to_dtype(without_padding(x, query.size(3)), dtype);
  };
  return {finished(grad_q), finished(grad_k), finished(grad_v)};
}

}  // namespace fastinst
