"""Equal but quicker layers of the networks; state-dict names and shapes are those of torch.nn's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """Conv3d, [B, C, T, H, W] -> [B, C', T', H', W'], whose kernel is flat: 1x1x1, (1,k,k) or (k,1,1).

    Channels-last clips need no copy to be a matrix of pixels, a batch of frames, or a batch of
    images [T, H*W], whose linear layer and 2D convolution are quicker than 3D kernels. Other inputs
    and kernels are convolved as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        (kt, kh, kw), (st, sh, sw), (pt, ph, pw) = self.kernel_size, self.stride, self.padding
        if not x.is_contiguous(memory_format=torch.channels_last_3d):
            return super().forward(x)
        if (kt, kh, kw, st, sh, sw) == (1, 1, 1, 1, 1, 1):
            return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        if (kt, st) == (1, 1):
            frames = x.transpose(1, 2).flatten(0, 1)  # [B * T, C, H, W]
            y = F.conv2d(frames, self.weight[:, :, 0], self.bias, (sh, sw), (ph, pw))
            return y.unflatten(0, (len(x), -1)).transpose(1, 2)
        if (kh, kw, sh, sw) == (1, 1, 1, 1):
            y = F.conv2d(x.flatten(3), self.weight[..., 0], self.bias, (st, 1), (pt, 0))
            return y.unflatten(3, x.shape[3:])
        return super().forward(x)


class MaxPool3d(nn.MaxPool3d):
    """MaxPool3d in its input's type: without indices, CPU autocast copies it to fp32, for the same maxima."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(x, self.kernel_size, self.stride, self.padding, return_indices=True)[0]
