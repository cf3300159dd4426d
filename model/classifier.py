"""Backbone with a linear classification layer, for linear probe, finetuning and feature extraction."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.select_backbone import select_backbone


class LinearClassifier(nn.Module):
    """Global average pool and one linear layer on a backbone.

    Args:
        num_class: number of classes.
        network: backbone name, see ``select_backbone``.
        dropout: probability of dropping a feature, used where ``use_dropout``.
        use_l2_norm: L2-normalise the feature.
        use_final_bn: BatchNorm1d between feature and linear layer.
    """

    def __init__(
        self,
        num_class: int = 101,
        network: str = "s3d",
        dropout: float = 0.5,
        use_dropout: bool = True,
        use_l2_norm: bool = False,
        use_final_bn: bool = False,
    ):
        super().__init__()
        self.backbone, param = select_backbone(network)
        feature_size = param["feature_size"]
        self.use_l2_norm = use_l2_norm
        self.final_bn = nn.BatchNorm1d(feature_size) if use_final_bn else None
        linear = nn.Linear(feature_size, num_class)
        nn.init.normal_(linear.weight, 0.0, 0.01)
        nn.init.zeros_(linear.bias)
        self.final_fc = nn.Sequential(nn.Dropout(dropout), linear) if use_dropout else nn.Sequential(linear)

    def forward(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """block [B, 3, T, H, W] -> (logit [B, num_class], feature [B, C])."""
        feature = self.backbone(block).mean(dim=(2, 3, 4))  # [B, C]
        if self.use_l2_norm:
            # those of untrained networks can be as small as 1e-14
            feature = F.normalize(feature, dim=1, eps=torch.finfo(feature.dtype).tiny)
        logit = self.final_fc(feature if self.final_bn is None else self.final_bn(feature))
        return logit, feature
