"""FastInst (arXiv 2303.08594): preprocess, forward, loss."""

from typing import Any

import torch
from torch import Tensor, nn

from fastinst.backbone import ResNet
from fastinst.config import ModelConfig, make_config
from fastinst.criterion import (
    Totals,
    count_totals,
    guidance,
    prediction_losses,
    proposal_loss,
)
from fastinst.decoder import DualPathDecoder
from fastinst.errors import InputError
from fastinst.matcher import match
from fastinst.pixel_decoder import PixelDecoder
from fastinst.queries import ActivationGuidedQueries, PositionEmbedding, Queries
from fastinst.targets import pad_targets, padded_size, to_device


class FastInst(nn.Module):
    """Images to class and mask logits: backbone, pixel decoder, queries, decoder."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.backbone = ResNet(config.backbone, config.frozen_batch_norm)
        self.pixel_decoder = PixelDecoder(self.backbone.channels, dim)
        self.positions = PositionEmbedding(dim)
        self.queries = ActivationGuidedQueries(
            dim,
            config.num_classes,
            config.num_queries,
            config.num_aux_queries,
            config.local_maximum_first,
        )
        self.decoder = DualPathDecoder(
            dim, config.num_heads, config.ffn_dim, config.num_layers, config.num_classes
        )

    def preprocess(
        self, images: list[Tensor], at_least: tuple[int, int] = (1, 1)
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalises, then pads with zeros to the right and bottom to one size.

        Args:
            images: uint8 RGB tensors [3, h, w] of any sizes. They are not resized here: see
                `fastinst.data.augment.resize_shortest_edge` for the sizes the models are made for
            at_least: height and width that the batch has at least, for the size of other batches

        Returns:
            the batch [B, 3, H, W] in the model's dtype and device, H and W multiples of 32, and
            each image's (height, width) in it

        Raises:
            InputError: no image, or one that is not uint8 [3, h, w], by its place in the list.
        """
        if len(images) == 0:
            raise InputError("preprocess needs at least one image")
        for i, image in enumerate(images):
            if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
                raise InputError(
                    f"image {i} must be a uint8 tensor [3, height, width], "
                    f"got {image.dtype} {tuple(image.shape)}"
                )
            if 0 in image.shape:
                raise InputError(f"image {i} has no pixels: {tuple(image.shape)}")
        weight = self.positions.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        statistics = torch.tensor(
            [self.config.pixel_mean, self.config.pixel_std], dtype=exact, device="cpu"
        )
        mean, std = to_device(statistics, weight.device).view(2, 3, 1, 1)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = padded_size(*map(max, zip(*sizes, at_least, strict=True)))
        batch = weight.new_zeros(len(images), 3, height, width)
        for padded, image, (h, w) in zip(batch, images, sizes, strict=True):
            padded[:, :h, :w] = (to_device(image, weight.device).to(exact) - mean) / std
        return batch, sizes

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """A batch of `preprocess` to predictions.

        Returns:
            pred_logits [B, Q, K + 1], the last class being no-object; pred_masks [B, Q, H/8, W/8]
            logits; query_indices [B, Q] int64, the row-major pixels of p4 that the queries come
            from, ascending. Q is 100, or the number of p4's pixels if that is less.
        """
        p3, pixel_position, queries = self._encode(batch)
        logits, masks = self.decoder(p3, pixel_position, queries)
        return {"pred_logits": logits, "pred_masks": masks, "query_indices": queries.indices}

    def loss(
        self,
        batch: Tensor,
        targets: list[dict[str, Any]],
        points: Tensor | None = None,
        totals: Totals | None = None,
    ) -> dict[str, Tensor]:
        """The weighted training losses, under the release's names; their sum is minimised.

        Args:
            batch: [B, 3, H, W] of `preprocess`
            targets: for each image `labels` [N] int64 and `masks` [N, h, w] bool at the image's
                own size, or the masks' bits (`ops.pack_bits`), [N, h, ceil(w / 32)] int32; N may be
                0. And `seed`, an int of 63 bits that the image's random points follow from; one is
                drawn from torch's generator if there is none
            points: [1, P, 2], (x, y) in [0, 1] over the padded input. If given they replace
                every random point of the matching and of the mask losses.
            totals: what the losses are divided by if the batch is only a part of a step's images,
                see `criterion.Totals`. By default this batch's, summed over the processes of a
                distributed run

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the last head; the same with `_0` .. `_L-1` for
            the guided passes and `_L` .. `_2L-1` for the other heads; `loss_proposal`

        Raises:
            InputError: targets that do not fit the batch.
        """
        config = self.config
        padded = pad_targets(targets, batch, config.num_classes)
        if totals is None:
            totals = count_totals(targets, batch.shape[2:], config).over_processes(batch.device)
        p3, pixel_position, queries = self._encode(batch)
        trace = self.decoder.trace(p3, pixel_position, queries)
        size = p3.shape[2:]
        matches = match(
            [output.logits for output in trace.outputs],
            [masks.unflatten(2, tuple(size)) for masks in trace.masks],
            queries,
            padded,
            config,
            points,
        )
        attend = guidance(matches, padded)
        guided = self.decoder.guided(trace, pixel_position, queries, attend)
        losses = prediction_losses(
            guided, trace.outputs, size, matches, padded, totals, config, points
        )
        proposal = proposal_loss(queries.class_logits, matches, padded, totals, config)
        return losses | {"loss_proposal": proposal}

    def _encode(self, batch: Tensor) -> tuple[Tensor, Tensor, Queries]:
        """p3 [B, C, h, w], its position map [1, C, h, w], and the queries."""
        p3, p4, _ = self.pixel_decoder(self.backbone(batch))
        queries = self.queries(p4, self.positions(p4.shape[2:]))
        return p3, self.positions(p3.shape[2:]), queries


def create_model(name: str, num_classes: int = 80, **overrides: Any) -> FastInst:
    """A FastInst model with random weights.

    Args:
        name: one of `list_models()`
        num_classes: foreground classes
        **overrides: other fields of `fastinst.config.ModelConfig`

    Raises:
        InputError: an unknown name or field, or a value that does not fit.
    """
    return FastInst(make_config(name, num_classes=num_classes, **overrides))
