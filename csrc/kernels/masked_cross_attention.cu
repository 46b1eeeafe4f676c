// The kernel of masked_cross_attention.cuh, to be compiled and measured without PyTorch: it is not
// a template, so that including it is enough.
#include "masked_cross_attention.cuh"
