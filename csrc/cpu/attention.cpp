#include "attention.h"

#include "float_type.h"
#include "kernels/attention.h"
#include "tasks.h"

namespace fastinst {
namespace {

// A row of a result is little work, so that a thread should get a few.
constexpr int64_t kRowsAtATime = 64;

Heads heads_of(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

void check(const Tensor& query, const Tensor& key, const Tensor& value) {
  const int64_t keys = key.size(2);
  STD_TORCH_CHECK(keys > 0, "key must have something to attend to");
  for (const Tensor& tensor : {key, value}) {
    expect_shape("key or value", tensor, {query.size(0), query.size(1), keys, query.size(3)});
    expect_dtype("key or value", tensor, query.scalar_type());
  }
}

// Memory for numbers in the type of sums, alive with its tensor.
Tensor numbers(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, accumulate_type(like.scalar_type()));
}

AttentionParams make_params(const Tensor& query, const Tensor& key, const Tensor& value,
                            const uint32_t* bits) {
  AttentionParams params{};
  params.type = float_type(query);
  params.batch = query.size(0);
  params.heads = query.size(1);
  params.num_queries = query.size(2);
  params.num_keys = key.size(2);
  params.dim = query.size(3);
  params.query = heads_of(query);
  params.key = heads_of(key);
  params.value = heads_of(value);
  params.bits = bits;
  return params;
}

}  // namespace

Tensor attention(const Tensor& query_, const Tensor& key_, const Tensor& value_,
                 const uint32_t* bits) {
  check(query_, key_, value_);
  const Tensor query = last_contiguous(query_), key = last_contiguous(key_),
               value = last_contiguous(value_);
  Tensor output = empty_heads(query, query.size(0), query.size(1), query.size(2), query.size(3));
  if (output.numel() == 0) return output;
  AttentionParams params = make_params(query, key, value, bits);
  params.output = heads_of(output);
  if (params.key_chunks() == 1) {
    for_each_task(params.tasks(), [&](int64_t task) {
      FASTINST_CALL(attention_forward, params, task);
    });
    return output;
  }
  const int64_t rows = params.batch * params.heads * params.num_queries;
  const int64_t partial_rows = rows * params.key_chunks();
  const Tensor outputs = numbers(query, partial_rows * params.slices() * 32);
  const Tensor maxima = numbers(query, partial_rows), sums = numbers(query, partial_rows);
  params.partial_outputs = outputs.data_ptr();
  params.maxima = maxima.data_ptr();
  params.sums = sums.data_ptr();
  for_each_task(params.tasks(), [&](int64_t task) {
    FASTINST_CALL(attention_forward, params, task);
  });
  torch::stable::parallel_for(0, rows, kRowsAtATime, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(attention_combine, params, begin, end);
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> attention_gradients(const Tensor& grad_, const Tensor& output_,
                                                       const Tensor& query_, const Tensor& key_,
                                                       const Tensor& value_,
                                                       const uint32_t* bits) {
  check(query_, key_, value_);
  for (const Tensor& tensor : {grad_, output_}) {
    const auto sizes = query_.sizes();
    expect_shape("grad or output", tensor, Sizes(sizes.begin(), sizes.end()));
    expect_dtype("grad or output", tensor, query_.scalar_type());
  }
  const Tensor grad = last_contiguous(grad_), output = last_contiguous(output_),
               query = last_contiguous(query_), key = last_contiguous(key_),
               value = last_contiguous(value_);
  const auto like = [](const Tensor& x) {
    return empty_heads(x, x.size(0), x.size(1), x.size(2), x.size(3));
  };
  Tensor grad_query = like(query), grad_key = like(key), grad_value = like(value);
  if (query.numel() == 0) {
    torch::stable::zero_(grad_key);
    torch::stable::zero_(grad_value);
    return {grad_query, grad_key, grad_value};
  }
  AttentionParams params = make_params(query, key, value, bits);
  params.output = heads_of(output);
  params.grad = heads_of(grad);
  params.grad_query = heads_of(grad_query);
  params.grad_key = heads_of(grad_key);
  params.grad_value = heads_of(grad_value);

  const int64_t planes = params.batch * params.heads;
  const int64_t query_rows = planes * params.num_queries, key_rows = planes * params.num_keys;
  const int64_t query_partials = query_rows * params.key_chunks();
  const int64_t key_partials = key_rows * params.query_chunks();
  const int64_t width = params.slices() * 32;
  const Tensor maxima = numbers(query, query_partials), sums = numbers(query, query_partials);
  params.maxima = maxima.data_ptr();
  params.sums = sums.data_ptr();
  const bool partial_queries = params.key_chunks() > 1, partial_keys = params.query_chunks() > 1;
  const Tensor of_queries = numbers(query, partial_queries ? query_partials * width : 0);
  const Tensor of_keys = numbers(query, partial_keys ? key_partials * width : 0);
  const Tensor of_values = numbers(query, partial_keys ? key_partials * width : 0);
  if (partial_queries) params.partial_grad_queries = of_queries.data_ptr();
  if (partial_keys) params.partial_grad_keys = of_keys.data_ptr();
  if (partial_keys) params.partial_grad_values = of_values.data_ptr();

  for_each_task(params.tasks(), [&](int64_t task) {
    FASTINST_CALL(attention_statistics, params, task);
  });
  for_each_task(params.tasks(), [&](int64_t task) {
    FASTINST_CALL(attention_backward, params, task);
  });
  if (partial_queries) {
    torch::stable::parallel_for(0, query_rows, kRowsAtATime, [&](int64_t begin, int64_t end) {
      FASTINST_CALL(attention_reduce_queries, params, begin, end);
    });
  }
  if (partial_keys) {
    torch::stable::parallel_for(0, key_rows, kRowsAtATime, [&](int64_t begin, int64_t end) {
      FASTINST_CALL(attention_reduce_keys, params, begin, end);
    });
  }
  return {grad_query, grad_key, grad_value};
}

}  // namespace fastinst
