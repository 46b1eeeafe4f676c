// Every kernel of query selection, compiled for the compiler's report and for each architecture.
#include "select_queries.cuh"

namespace fastinst {
namespace {

template __global__ void find_candidates_kernel(FindCandidatesParams<double>);
template __global__ void find_candidates_kernel(FindCandidatesParams<float>);
template __global__ void find_candidates_kernel(FindCandidatesParams<__half>);
template __global__ void find_candidates_kernel(FindCandidatesParams<__nv_bfloat16>);

template __global__ void take_queries_kernel(TakeQueriesParams<double, unsigned long long>);
template __global__ void take_queries_kernel(TakeQueriesParams<double, unsigned>);
template __global__ void take_queries_kernel(TakeQueriesParams<double, unsigned short>);
template __global__ void take_queries_kernel(TakeQueriesParams<double, unsigned char>);
template __global__ void take_queries_kernel(TakeQueriesParams<float, unsigned long long>);
template __global__ void take_queries_kernel(TakeQueriesParams<float, unsigned>);
template __global__ void take_queries_kernel(TakeQueriesParams<float, unsigned short>);
template __global__ void take_queries_kernel(TakeQueriesParams<float, unsigned char>);

}  // namespace
}  // namespace fastinst
