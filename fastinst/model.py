"""FastInst (arXiv 2303.08594), and its baseline: preprocess, forward, loss."""

from collections.abc import Iterator
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
from fastinst.decoder import DualPathDecoder, MaskedAttentionDecoder, Scene
from fastinst.matcher import match
from fastinst.pixel_decoder import PixelDecoder
from fastinst.positions import PositionEmbedding, SinePositions
from fastinst.preprocess import preprocess
from fastinst.queries import ActivationGuidedQueries, LearnableQueries, Queries
from fastinst.targets import pad_targets


class FastInst(nn.Module):
    """Images to class and mask logits: backbone, pixel decoder, queries, decoder.

    By its configuration it is FastInst, Mask2Former, or anything between the two.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.backbone = ResNet(config.backbone, config.frozen_batch_norm)
        self.pixel_decoder = PixelDecoder(self.backbone.channels, dim)
        self.positions = (PositionEmbedding if config.learnable_positions else SinePositions)(dim)
        if config.activation_guided:
            self.queries = ActivationGuidedQueries(
                dim,
                config.num_classes,
                config.num_queries,
                config.num_aux_queries,
                config.local_maximum_first,
            )
        else:
            self.queries = LearnableQueries(dim, config.num_queries)
        self.decoder = (DualPathDecoder if config.dual_path else MaskedAttentionDecoder)(
            dim, config.num_heads, config.ffn_dim, config.num_layers, config.num_classes
        )

    @property
    def device(self) -> torch.device:
        return self.decoder.heads[0].norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.heads[0].norm.weight.dtype

    def preprocess(
        self, images: list[Tensor], at_least: tuple[int, int] = (1, 1)
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """`fastinst.preprocess.preprocess` in the model's dtype, on its device."""
        return preprocess(images, self.config, self.device, self.dtype, at_least)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """A batch of `preprocess` to predictions.

        Returns:
            pred_logits [B, Q, K + 1], the last class being no-object; pred_masks [B, Q, H/8, W/8]
            logits; and, of activation-guided queries, query_indices [B, Q] int64, the row-major
            pixels of p4 that they come from, ascending. Q is `num_queries`, or the number of p4's
            pixels if that is less.
        """
        for _, result in self.stages(batch):  # each is let go when the next is there
            outputs = result
        return outputs

    def stages(self, batch: Tensor) -> Iterator[tuple[str, Any]]:
        """`forward` step by step: yields each stage's name as it ends, with its result.

        These are "backbone" with (res3, res4, res5), "pixel decoder" with p3, and "decoder", which
        counts the choice of queries, with what `forward` returns.
        """
        features = self.backbone(batch)
        yield "backbone", features
        features = self.pixel_decoder(features)
        yield "pixel decoder", features[0]
        scene, queries = self._scene(features)
        del features
        logits, masks = self.decoder(scene, queries)
        outputs = {"pred_logits": logits, "pred_masks": masks}
        if queries.indices is not None:
            outputs["query_indices"] = queries.indices
        yield "decoder", outputs

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
            the guided passes and `_L` .. `_2L-1` for the other heads, or `_0` .. `_L-1` for these
            if nothing is guided; `loss_proposal` if queries are activation-guided

        Raises:
            InputError: targets that do not fit the batch.
        """
        config = self.config
        padded = pad_targets(targets, batch, config.num_classes)
        if totals is None:
            totals = count_totals(targets, batch.shape[2:], config).over_processes(batch.device)
        scene, queries = self.encode(batch)
        trace = self.decoder.trace(scene, queries)
        matches = match(
            [output.logits for output in trace.outputs],
            [masks.unflatten(2, scene.size) for masks in trace.masks],
            queries,
            padded,
            config,
            points,
        )
        guided = []
        if config.mask_guided:
            attend = [guidance(matches, padded, stride) for stride in self.decoder.strides]
            guided = self.decoder.guided(trace, scene, queries, attend)
        losses = prediction_losses(
            guided, trace.outputs, scene.size, matches, padded, totals, config, points
        )
        if config.activation_guided:
            losses["loss_proposal"] = proposal_loss(
                queries.class_logits, matches, padded, totals, config
            )
        return losses

    def encode(self, batch: Tensor) -> tuple[Scene, Queries]:
        """A batch of `preprocess` to all that the decoder works on."""
        return self._scene(self.pixel_decoder(self.backbone(batch)))

    def _scene(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Scene, Queries]:
        p4 = features[1]
        queries = self.queries(p4, self.positions(p4.shape[2:]))
        return self.decoder.scene(features, self.positions), queries


def create_model(name: str, num_classes: int = 80, **overrides: Any) -> FastInst:
    """A model with random weights.

    Args:
        name: one of `list_models()`
        num_classes: foreground classes
        **overrides: other fields of `fastinst.config.ModelConfig`

    Raises:
        InputError: an unknown name or field, or a value that does not fit.
    """
    return FastInst(make_config(name, num_classes=num_classes, **overrides))
