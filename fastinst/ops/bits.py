"""Booleans as bits: 32 in an int32 word, the first in the lowest bit."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def packed_length(length: int) -> int:
    """How many words hold `length` bits."""
    return (length + 31) // 32


def pack_bits(values: Tensor) -> Tensor:
    """[..., L] bool to [..., ceil(L / 32)] int32; bits past L are 0."""
    padded = F.pad(values, (0, -values.shape[-1] % 32))
    bits = padded.unflatten(-1, (packed_length(values.shape[-1]), 4, 8)).to(torch.uint8)
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=values.device)
    return (bits * weights).sum(-1, dtype=torch.uint8).view(torch.int32).squeeze(-1)


def unpack_bits(words: Tensor, length: int) -> Tensor:
    """[..., ceil(length / 32)] int32 to [..., length] bool."""
    # NumPy is 70 times as fast as shifting, but cannot be traced: fake tensors are a subclass.
    if type(words) is Tensor and words.device.type == "cpu":
        octets = words.contiguous().numpy().view(np.uint8)
        bits = np.unpackbits(octets, axis=-1, count=length, bitorder="little")
        return torch.from_numpy(bits.view(bool))
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    bits = (words.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :length].bool()
