"""What each operator is measured against: what one would use instead, at the model's shapes.

Every entry of CASES is a function of a device and a dtype that yields Cases.
"""

from fastinst.rivals.attention import (
    attention_mask_cases,
    attention_to_queries_cases,
    masked_cross_attention_cases,
)
from fastinst.rivals.case import Case
from fastinst.rivals.deform_conv2d import deform_conv2d_cases
from fastinst.rivals.masks import encode_masks_cases, read_out_masks_cases, select_queries_cases
from fastinst.rivals.points import (
    point_losses_cases,
    sample_masks_cases,
    uncertain_points_cases,
)

CASES = {
    "deform_conv2d": deform_conv2d_cases,
    "masked_cross_attention": masked_cross_attention_cases,
    "attention_to_queries": attention_to_queries_cases,
    "attention_mask": attention_mask_cases,
    "select_queries": select_queries_cases,
    "read_out_masks": read_out_masks_cases,
    "encode_masks": encode_masks_cases,
    "uncertain_points": uncertain_points_cases,
    "point_losses": point_losses_cases,
    "sample_masks": sample_masks_cases,
}

__all__ = ["CASES", "Case"]
