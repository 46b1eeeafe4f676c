"""The CUDA kernels of attention on the emulator, called with tensors as the operators are."""

import emulated
import torch
from torch import Tensor

SOURCE = r"""
#include "kernels/attention_backward.cuh"
#include "kernels/masked_cross_attention.cuh"

using namespace fastinst;

// layout: batch stride, head stride, token stride, tokens
template <typename T>
Heads<T> heads_at(T* data, const int64_t* layout) {
  return {data, layout[0], layout[1], static_cast<int>(layout[2]), static_cast<int>(layout[3])};
}

constexpr double kLog2E = 1.4426950408889634;

template <typename T>
void forward(const T* query, const T* key, const T* value, T* output, const int64_t* layouts,
             const int64_t* shape, const unsigned* bits, const unsigned char* guided,
             int guided_queries, Accumulate<T>* sums, Accumulate<T>* statistics, double scale,
             int chunk_columns) {
  AttentionParams<T> params{};
  params.shape = {(int)shape[0], (int)shape[1], (int)shape[2]};
  params.query = heads_at(query, layouts);
  params.key = heads_at(key, layouts + 4);
  if (value != nullptr) params.value = heads_at(value, layouts + 8);
  if (output != nullptr) params.output = heads_at(output, layouts + 12);
  params.attend = {bits, guided, guided_queries, ceil_div(params.key.tokens, 32)};
  params.scale = scale * kLog2E;
  params.chunk_columns = chunk_columns;
  params.partial_sums = sums;
  params.partial_statistics = statistics;
  launch_attention(params, nullptr);
}

template <typename T>
void backward(const T* grad, const T* output, const T* query, const T* key, const T* value,
              T* grad_query, T* grad_key, T* grad_value, const int64_t* layouts,
              const int64_t* shape, const unsigned* bits, const unsigned char* guided,
              int guided_queries, const Accumulate<T>* statistics, int statistics_chunks,
              Accumulate<T>* query_statistics, int* largest_grad, Accumulate<T>* partial_query,
              Accumulate<T>* partial_key, Accumulate<T>* partial_value, double scale,
              int chunk_keys, int chunk_queries) {
  AttentionGradientParams<T> params{};
  params.shape = {(int)shape[0], (int)shape[1], (int)shape[2]};
  params.grad = heads_at(grad, layouts);
  params.output = heads_at(output, layouts + 4);
  params.query = heads_at(query, layouts + 8);
  params.key = heads_at(key, layouts + 12);
  params.value = heads_at(value, layouts + 16);
  params.attend = {bits, guided, guided_queries, ceil_div(params.key.tokens, 32)};
  params.scale = scale;
  params.score_scale = scale * kLog2E;
  params.partial_statistics = statistics;
  params.statistics_chunks = statistics_chunks;
  params.query_statistics = query_statistics;
  params.largest_grad = largest_grad;
  RowGradients<T> of_queries{}, of_keys{};
  of_queries.first = heads_at(grad_query, layouts + 20);
  of_queries.chunk_columns = chunk_keys;
  of_queries.partial_first = partial_query;
  of_keys.first = heads_at(grad_key, layouts + 24);
  of_keys.second = heads_at(grad_value, layouts + 28);
  of_keys.chunk_columns = chunk_queries;
  of_keys.partial_first = partial_key;
  of_keys.partial_second = partial_value;
  launch_attention_gradient(params, of_queries, of_keys, nullptr);
}

void survey(const bool* attend, const int64_t* strides, unsigned* bits, unsigned char* guided,
            int batch, int queries, int pixels) {
  SurveyParams params{attend, 0, 0, 0, bits, guided, batch, queries, pixels};
  if (attend != nullptr) {
    params.batch_stride = strides[0];
    params.query_stride = strides[1];
    params.pixel_stride = strides[2];
  }
  launch_survey(params, nullptr);
}

EMULATED(survey, survey)
EMULATED(forward_float64, forward<double>)
EMULATED(forward_float32, forward<float>)
EMULATED(forward_float16, forward<__half>)
EMULATED(forward_bfloat16, forward<__nv_bfloat16>)
EMULATED(backward_float64, backward<double>)
EMULATED(backward_float32, backward<float>)
EMULATED(backward_float16, backward<__half>)
EMULATED(backward_bfloat16, backward<__nv_bfloat16>)
"""


def kernel(name: str, dtype: torch.dtype):
    return getattr(emulated.build(SOURCE), f"{name}_{str(dtype).removeprefix('torch.')}")


def attention(query, key, value, attend=None, chunk=None) -> Tensor:
    """[B, H, Q, D]; `chunk` divides the keys among blocks, a multiple of 32 of them each."""
    output = heads_like(query)
    _forward(query, key, value, output, *survey(attend, key.shape[2]), chunk)
    return output


def attention_gradient(grad, output, query, key, value, attend=None, chunk=None):
    """The gradients of query, key and value; `chunk` divides keys and queries among blocks."""
    batch, heads, queries, dim = query.shape
    keys, real = key.shape[2], accumulate_type(query)
    bits, guided = survey(attend, keys)
    statistics = _forward(query, key, None, None, bits, guided, chunk or round_up(keys))
    grads = [heads_like(x) for x in (query, key, value)]
    partial = [None] * 3
    if chunk:
        partial = [
            unwritten(-(-columns // chunk), batch, heads, rows, dim, dtype=real)
            for rows, columns in ((queries, keys), (keys, queries), (keys, queries))
        ]
    kernel("backward", query.dtype)(
        *(grad, output, query, key, value, *grads),
        layouts(grad, output, query, key, value, *grads),
        torch.tensor([batch, heads, dim]),
        *(bits, guided, 0 if attend is None else attend.shape[1]),
        *(statistics, statistics.shape[0], unwritten(3, batch, heads, queries, dtype=real)),
        *(torch.zeros(1, dtype=torch.int32), *partial),
        *(dim**-0.5, chunk or round_up(keys), chunk or round_up(queries)),
    )
    return grads


def _forward(query, key, value, output, bits, guided, chunk) -> Tensor | None:
    """Returns the statistics of the chunks, which only more than one chunk or no output needs."""
    batch, heads, queries, dim = query.shape
    sums = statistics = None
    if chunk:
        parts = (-(-key.shape[2] // chunk), batch, heads, queries)
        statistics = unwritten(*parts, 2, dtype=accumulate_type(query))
        sums = None if value is None else unwritten(*parts, dim, dtype=accumulate_type(query))
    given = [query, key, *(x for x in (value, output) if x is not None)]
    kernel("forward", query.dtype)(
        *(query, key, value, output, layouts(*given), torch.tensor([batch, heads, dim])),
        *(bits, guided, 0 if guided is None else guided.shape[1]),
        *(sums, statistics, dim**-0.5, chunk or round_up(key.shape[2])),
    )
    return statistics


def survey(attend: Tensor | None, pixels: int) -> tuple[Tensor | None, Tensor | None]:
    """The bits of a mask that is bool or has bits, and which queries have one."""
    if attend is None:
        return None, None
    batch, queries, _ = attend.shape
    guided = unwritten(batch, queries, dtype=torch.uint8)
    is_bool = attend.dtype == torch.bool
    bits = unwritten(batch, queries, -(-pixels // 32), dtype=torch.int32) if is_bool else attend
    emulated.build(SOURCE).survey(
        *(attend if is_bool else None, torch.tensor(attend.stride())),
        *(bits, guided, batch, queries, pixels),
    )
    return bits, guided


def layouts(*tensors: Tensor) -> Tensor:
    return torch.tensor([[*x.stride()[:3], x.shape[2]] for x in tensors])


def heads_like(x: Tensor) -> Tensor:
    """[B, H, N, D] that lies in memory as [B, N, H, D], filled with what must be overwritten."""
    return unwritten(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=x.dtype).transpose(1, 2)


def unwritten(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan") if dtype.is_floating_point else 7, dtype=dtype)


def accumulate_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def round_up(columns: int) -> int:
    return -(-columns // 32) * 32


def tensors(batch, heads, rows, columns, dim, dtype) -> list[Tensor]:
    """query of rows, key and value of columns: views of one projection, as in the model."""
    tokens = max(rows, columns)
    projection = torch.randn(batch, tokens, 3, heads, dim).to(dtype).transpose(1, 3)
    query, key, value = projection.unbind(2)
    return [query[:, :, :rows], key[:, :, :columns], value[:, :, :columns]]


def assert_as_good_as_plain(actual, same_dtype, expected) -> None:
    """The kernel errs at most twice as much as the definition in the same dtype."""
    for kernel_made, plain, exact in zip(actual, same_dtype, expected, strict=True):
        assert kernel_made.dtype == plain.dtype
        assert kernel_made.transpose(1, 2).is_contiguous()
        # A sum of 32 products of size 1, added one after the other, rounds by this much; vectorised
        # ones add up in another order, and the definition in float64 is its own reference.
        floor = 16 * torch.finfo(accumulate_type(plain)).eps
        error = (kernel_made.double() - exact).abs().max()
        assert error <= 2 * (plain.double() - exact).abs().max() + floor
