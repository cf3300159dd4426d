"""BatchNorm over groups of the batch, so that one process normalises as several GPUs would."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d that, in training, normalises each of ``splits`` consecutive parts of the batch by itself.

    Running statistics become the mean over the parts; state-dict names and shapes are BatchNorm3d's.
    """

    splits = 1

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        if not self.training or self.splits == 1:
            return super().forward(x)
        means = self.running_mean.repeat(self.splits, 1)  # [splits, C]
        variances = self.running_var.repeat(self.splits, 1)
        parts = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, variance in zip(x.chunk(self.splits), means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(means.mean(dim=0))
            self.running_var.copy_(variances.mean(dim=0))
            self.num_batches_tracked.add_(1)
        return torch.cat(parts)


def split_batch_norm(model: nn.Module, splits: int) -> nn.Module:
    """Make every BatchNorm3d of ``model`` normalise in ``splits`` groups; the batch must be divisible by it.

    One process that shuffles its keys has nothing to shuffle across without groups (original threads 16 and
    42).
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = SplitBatchNorm3d  # in place: S3D registers each layer under two names
            module.splits = splits
    return model
