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


def indices(*values):
    return torch.tensor(values, dtype=torch.int64, device="cpu")


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


def uncertain(logits=(2, 4, 4), seeds=2, counts=(8, 24, 6)):
    return OPS.uncertain_points(rand(*logits), indices(*range(seeds)), *counts)


def pairs(logits=(2, 4, 4), masks=(3, 9, 2), index=(0, 2), points=(2, 5, 2)):
    return rand(*logits), bits(*masks), indices(*index), rand(*points)


def sample(masks=(3, 9, 2), points=(2, 5, 2), groups=(0, 1, 1)):
    return OPS.sample_masks(bits(*masks), rand(*points), indices(*groups))


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
    "logits of no rows": lambda: uncertain(logits=(2, 0, 4)),
    "seeds of fewer maps": lambda: uncertain(seeds=1),
    "seeds as numbers": lambda: OPS.uncertain_points(rand(2, 4, 4), rand(2), 8, 24, 6),
    "more important points than points": lambda: uncertain(counts=(5, 24, 6)),
    "more important points than candidates": lambda: uncertain(counts=(8, 5, 6)),
    "a negative number of points": lambda: uncertain(counts=(-1, 5, 0)),
    "index of no mask": lambda: OPS.point_losses(*pairs(index=(0, 3))),
    "negative index": lambda: OPS.point_losses(*pairs(index=(0, -1))),
    "fewer indices than logits": lambda: OPS.point_losses(*pairs(index=(0,))),
    "points of fewer pairs": lambda: OPS.point_losses(*pairs((3, 4, 4), index=(0, 1, 2))),
    "points on a line": lambda: OPS.point_losses(*pairs(points=(2, 5, 1))),
    "no points": lambda: OPS.point_losses(*pairs(points=(2, 0, 2))),
    "masks of no words": lambda: OPS.point_losses(*pairs(masks=(3, 9, 0))),
    "gradient of fewer pairs": lambda: OPS.point_losses_backward(rand(2), rand(1), *pairs()),
    "group of no points": lambda: sample(groups=(0, 1, 2)),
    "groups of fewer masks": lambda: sample(groups=(0, 1)),
    "points of three coordinates": lambda: sample(points=(2, 5, 3)),
    "points in half precision": lambda: OPS.sample_masks(
        bits(3, 9, 2), rand(2, 5, 2).half(), indices(0, 1, 1)
    ),
}


@skip_unless_compiled("encode_masks")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_wrong_tensors_are_refused(call):
    with pytest.raises(RuntimeError, match=" must | fit | has another (shape|dtype)"):
        call()
