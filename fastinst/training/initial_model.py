"""The model that a training run starts with."""

from collections.abc import Callable
from typing import Any

from fastinst.config import image_size
from fastinst.errors import InputError
from fastinst.model import FastInst, create_model
from fastinst.weights import load_weights

# Batch norms that share statistics over fewer images than the first number train badly. Pretrained
# ones are left frozen below the second; the release freezes them at its 16.
FEWEST_FOR_STATISTICS, FEWEST_TO_UNFREEZE = 4, 32
# Instances are small parts of their images. From masks of one half everywhere, as the release's are
# at first, nearly all of the first gradient is to clear them. It is tens of times what the decoder
# gets later, and AdamW divides by it for hundreds of steps (benchmarks/LOG.md). So masks start at a
# prior, as RetinaNet's classes do, and at its value (arXiv 1708.02002, section 4.1).
MASK_PRIOR = 0.01


def initial_model(
    name: str,
    num_classes: int,
    options: dict[str, Any],
    *,
    size: int | None,
    weights: str | None,
    batch_norm: str,
    images_per_norm: int,
    say: Callable[[str], object],
) -> FastInst:
    """A model with the weights that it is to start from, and everything decided about it said.

    Args:
        options: fields of ModelConfig
        size: shorter image edge of training and testing, in place of the model's
        weights: a source of `load_weights`, or None to start from scratch
        batch_norm: "frozen", "train", or "auto": from scratch they train, and pretrained ones with
            32 images or more
        images_per_norm: images that share batch statistics

    Raises:
        InputError: unknown names, weights that do not fit, or frozen norms without any weights.
    """
    if size:
        options = options | image_size(size)
    few = images_per_norm < (FEWEST_TO_UNFREEZE if weights else 0)
    frozen = {"auto": few, "frozen": True, "train": False}[batch_norm]
    frozen = options.get("frozen_batch_norm", frozen)
    if frozen is True and not weights:
        raise InputError(
            "frozen batch norms are meaningless without pretrained weights: pass --weights, or "
            "--batch-norm train"
        )
    model = create_model(name, num_classes, **options | {"frozen_batch_norm": frozen})
    for head in model.decoder.heads:  # those that the weights have start as they are there
        head.start_masks_at(MASK_PRIOR)

    start = "none, training from scratch"
    if weights:
        fresh = load_weights(model, weights)
        more = f" and {len(fresh) - 12} more" if len(fresh) > 12 else ""
        told = f"; starting anew: {', '.join(fresh[:12])}{more}" if fresh else ""
        start = f"{weights}{told}"
    say(f"weights: {start}")
    say(f"batch norms: {'frozen' if frozen else f'trained on {images_per_norm} images at a time'}")
    if not frozen and images_per_norm < FEWEST_FOR_STATISTICS:
        say(
            f"warning: the statistics of {images_per_norm} images are noisy; a larger --batch-size "
            f"trains better, or pretrained --weights with --batch-norm frozen"
        )
    return model
