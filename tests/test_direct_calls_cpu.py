"""Calls of the CPU kernels by torch.ops, past the checks of fastinst.ops, end in errors.

Without the kernels' own checks most of these read memory that is not the tensor's.
"""

import pytest
import torch
from cpu_kernels import skip_unless_compiled

OPS = torch.ops.fastinst
ONES = [1, 1]


def rand(*shape):
    return torch.rand(shape, device="cpu")


def bits(*shape):
    return torch.ones(shape, dtype=torch.int32, device="cpu")


def deform(offset=(1, 18, 6, 6), weight=(3, 4, 3, 3), bias=None, mask=None, stride=ONES):
    bias, mask = (None if shape is None else rand(*shape) for shape in (bias, mask))
    tensors = rand(1, 4, 6, 6), rand(*offset), rand(*weight)
    return OPS.deform_conv2d(*tensors, bias, mask, stride, ONES, ONES, False)


def attend(attend, key=(1, 2, 40, 4)):
    return OPS.masked_cross_attention(rand(1, 2, 5, 4), rand(*key), rand(*key), attend)


def select(logits=(1, 3, 6, 6), maps=(1, 4, 6, 6), positions=(1, 4, 6, 6), count=5):
    return OPS.select_queries(rand(*logits), rand(*maps), rand(*positions), count, True)


def read_out(logits=(2, 4, 4), padded=(16, 16), image=(16, 16), output=(9, 9)):
    return OPS.read_out_masks(rand(*logits), list(padded), list(image), list(output), False)


CALLS = {
    "offset for other taps": lambda: deform(offset=(1, 6, 6, 6)),
    "offset of more images": lambda: deform(offset=(2, 18, 6, 6)),
    "weight of no channels": lambda: deform(weight=(3, 0, 3, 3)),
    "weight of no taps": lambda: deform(weight=(3, 4, 0, 3)),
    "bias too short": lambda: deform(bias=(2,)),
    "mask too small": lambda: deform(mask=(1, 9, 6, 5)),
    "stride of one number": lambda: deform(stride=[1]),
    "gradient too small": lambda: OPS.deform_conv2d_backward(
        rand(1, 3, 6, 5), rand(1, 4, 6, 6), rand(1, 18, 6, 6), rand(3, 4, 3, 3), None, *[ONES] * 3
    ),
    "keys of fewer images": lambda: OPS.attention_to_queries(
        rand(2, 2, 5, 4), *[rand(1, 2, 5, 4)] * 2
    ),
    "keys in another dtype": lambda: OPS.attention_to_queries(
        rand(1, 2, 5, 4).double(), *[rand(1, 2, 5, 4)] * 2
    ),
    "no keys": lambda: OPS.attention_to_queries(rand(1, 2, 5, 4), *[rand(1, 2, 0, 4)] * 2),
    "gradient of fewer queries": lambda: OPS.attention_to_queries_backward(
        rand(1, 2, 4, 4), *[rand(1, 2, 5, 4)] * 4
    ),
    "attend for fewer pixels": lambda: attend(bits(1, 5, 1)),
    "attend for more queries": lambda: attend(bits(1, 6, 2)),
    "attend as numbers": lambda: attend(rand(1, 5, 40)),
    "pixels of fewer channels": lambda: OPS.attention_mask(rand(1, 3, 8), rand(1, 9, 7), None),
    "pixels in another dtype": lambda: OPS.attention_mask(
        rand(1, 3, 8).double(), rand(1, 9, 8), None
    ),
    "bias for fewer queries": lambda: OPS.attention_mask(rand(1, 3, 8), rand(1, 9, 8), rand(1, 2)),
    "more queries than pixels": lambda: select(count=37),
    "no foreground class": lambda: select(logits=(1, 1, 6, 6)),
    "features too small": lambda: select(maps=(1, 4, 5, 6)),
    "positions too small": lambda: select(positions=(1, 4, 6, 5)),
    "no logits": lambda: read_out(logits=(2, 0, 4)),
    "size of one number": lambda: read_out(output=(9,)),
    "image larger than padded": lambda: read_out(image=(16, 17)),
    "masks narrower than their width": lambda: OPS.encode_masks(bits(2, 3, 1), 33),
    "masks as numbers": lambda: OPS.encode_masks(rand(2, 3, 4), 4),
}


@skip_unless_compiled("encode_masks")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_wrong_tensors_are_refused(call):
    with pytest.raises(RuntimeError, match=" must | fit | has another (shape|dtype)"):
        call()
