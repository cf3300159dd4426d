"""Momentum-contrast pretraining models: InfoNCE, UberNCE and CoCLR (Han et al. 2020, arXiv 2010.09709).

State-dict names and shapes are those of the released checkpoints.
Everything also works without a process group.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.select_backbone import select_backbone


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def all_gather(tensor: Tensor) -> Tensor:
    """Concatenate tensors [B, ...] of all ranks along dim 0, by rank, as they lie in memory; no gradient."""
    if world_size() == 1:
        return tensor
    order = [0, *sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)]  # outermost first
    packed = tensor.permute(order).contiguous()
    gathered = packed.new_empty((world_size() * packed.shape[0], *packed.shape[1:]))
    dist.all_gather_into_tensor(gathered, packed)
    return gathered.permute([order.index(dim) for dim in range(tensor.dim())])


def this_rank_rows(batch: int, device: torch.device) -> Tensor:
    """Row numbers [batch] that this rank contributes to a gathered batch."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return torch.arange(rank * batch, (rank + 1) * batch, device=device)


def projection_encoder(network: str, dim: int) -> nn.Sequential:
    """Backbone, global average pool and a two-layer projection: [B, 3, T, H, W] -> [B, dim, 1, 1, 1]."""
    backbone, param = select_backbone(network)
    size = param["feature_size"]
    return nn.Sequential(
        backbone, nn.AdaptiveAvgPool3d(1), nn.Conv3d(size, size, 1), nn.ReLU(), nn.Conv3d(size, dim, 1)
    )


def set_batch_norm_bias(module: nn.Module, bias: float) -> None:
    """Set the bias of all batch norms in ``module``: 0 is torch's; above it fewer values die in the ReLUs."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.constant_(layer.bias, bias)


def embed(encoder: nn.Module, clips: Tensor) -> Tensor:
    """L2-normalised fp32 embeddings [B, dim] of clips [B, 3, T, H, W]."""
    return F.normalize(encoder(clips).flatten(1).float(), dim=1)


class InfoNCE(nn.Module):
    """MoCo on two clips of a video.

    Args:
        network: backbone name, see ``select_backbone``.
        dim: size of the embedding.
        K: number of negatives in the queue; must divide by the global batch.
        m: momentum of the key encoder's parameters.
        T: temperature.
    """

    def __init__(
        self, network: str = "s3d", dim: int = 128, K: int = 2048, m: float = 0.999, T: float = 0.07
    ):
        super().__init__()
        self.dim, self.K, self.m, self.T = dim, K, m, T
        self.encoder_q = projection_encoder(network, dim)
        self.encoder_k = projection_encoder(network, dim)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _momentum_update(self) -> None:
        torch._foreach_lerp_(list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), 1 - self.m)

    @torch.no_grad()
    def _encode_keys(self, clips: Tensor) -> Tensor:
        """Embeddings [B, dim] of clips [B, 3, T, H, W] by the key encoder.

        The batch is shuffled over all ranks (over the BatchNorm groups of one process, see ``--bn_splits``),
        so that a key's normalisation statistics do not give away its query.
        """
        if torch.is_autocast_enabled(
            clips.device.type
        ):  # the first layer would do it; half as much to gather
            clips = clips.to(torch.get_autocast_dtype(clips.device.type))
        everyone = all_gather(clips)  # [world * B, 3, T, H, W]
        permutation = torch.randperm(everyone.shape[0], device=clips.device)
        if world_size() > 1:
            dist.broadcast(permutation, src=0)
        rows = this_rank_rows(clips.shape[0], clips.device)
        keys = all_gather(embed(self.encoder_k, everyone[permutation[rows]]))
        return keys[permutation.argsort()[rows]]

    def _logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Similarities [B, 1+K] of query to its key and to the present queue, over the temperature; fp32."""
        with torch.autocast(query.device.type, enabled=False):
            positive = (query * key).sum(dim=1, keepdim=True)  # [B, 1]
            negative = query @ self.queue.clone()  # [B, K]; the queue changes before backward
            return torch.cat([positive, negative], dim=1) / self.T

    @torch.no_grad()
    def _enqueue(self, **entries: Tensor) -> None:
        """Write all ranks' entries, [B, dim] or [B], into the buffers of these names at the pointer."""
        for name, entry in entries.items():
            entry = all_gather(entry)
            count = entry.shape[0]
            slots = (self.queue_ptr + torch.arange(count, device=entry.device)) % self.K
            self.get_buffer(name).index_copy_(-1, slots, entry.movedim(0, -1))
        self.queue_ptr.copy_((self.queue_ptr + count) % self.K)

    def _contrast(self, query_clips: Tensor, key_clips: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 1+K] and keys [B, dim]; the key encoder moves only while gradients flow."""
        query = embed(self.encoder_q, query_clips)
        if query.requires_grad:
            self._momentum_update()
        key = self._encode_keys(key_clips)
        return self._logits(query, key), key

    def forward(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """block [B, 2, 3, T, H, W] -> (logits [B, 1+K], labels [B], all 0: the column of the positive)."""
        logits, key = self._contrast(block[:, 0], block[:, 1])
        if logits.requires_grad:
            self._enqueue(queue=key)
        return logits, torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)


class UberNCE(InfoNCE):
    """InfoNCE whose positives are all queue entries of the query's class: the supervised upper bound."""

    def __init__(
        self, network: str = "s3d", dim: int = 128, K: int = 2048, m: float = 0.999, T: float = 0.07
    ):
        super().__init__(network, dim, K, m, T)
        self.register_buffer("queue_label", torch.full((K,), -1, dtype=torch.long))  # -1: empty

    def forward(self, block: Tensor, k_label: Tensor) -> tuple[Tensor, Tensor]:
        """block [B, 2, 3, T, H, W], class labels [B] -> (logits [B, 1+K], positives [B, 1+K] bool)."""
        logits, key = self._contrast(block[:, 0], block[:, 1])
        positives = F.pad(k_label[:, None] == self.queue_label, (1, 0), value=True)
        if logits.requires_grad:
            self._enqueue(queue=key, queue_label=k_label)
        return logits, positives


class CoCLR(InfoNCE):
    """Co-training: positives are mined with a frozen encoder of the other stream.

    Args:
        topk: number of neighbours mined per query; 0 leaves the siblings of its source video only.
        reverse: train on flow and mine with RGB, instead of training on RGB and mining with flow.

    Attributes:
        queue_is_full: whether mining has begun; before that no optimiser step may be taken.
        mined_source: [B, topk] source ids of neighbours mined by the last forward, to monitor; None before.
    """

    def __init__(
        self,
        network: str = "s3d",
        dim: int = 128,
        K: int = 2048,
        m: float = 0.999,
        T: float = 0.07,
        topk: int = 5,
        reverse: bool = False,
    ):
        super().__init__(network, dim, K, m, T)
        self.topk, self.reverse = topk, reverse
        self.sampler = projection_encoder(network, dim).requires_grad_(False)
        self.register_buffer("queue_second", F.normalize(torch.randn(dim, K), dim=0))
        self.register_buffer("queue_vname", torch.full((K,), -1, dtype=torch.long))  # source video, -1: empty
        self.register_buffer("queue_label", torch.full((K,), -1, dtype=torch.long))  # 1: filled, -1: empty
        self.queue_is_full = False
        self.mined_source: Tensor | None = None
        self.train()

    def train(self, mode: bool = True) -> "CoCLR":
        """Set the mode of everything but the sampler, which stays in eval mode."""
        super().train(mode)
        self.sampler.eval()
        return self

    @torch.no_grad()
    def _positives(self, k_vsource: Tensor, second: Tensor) -> Tensor:
        """Positives [B, 1+K] in the present queue of source ids [B] and the sampler's embeddings [B, dim]."""
        siblings = k_vsource[:, None] == self.queue_vname  # [B, K]
        positives = siblings
        if self.queue_is_full and self.topk > 0:
            with torch.autocast(second.device.type, enabled=False):
                similarity = (second @ self.queue_second).masked_fill(siblings, -torch.inf)  # [B, K]
            neighbours = similarity.topk(self.topk, dim=1).indices
            self.mined_source = self.queue_vname[neighbours]
            positives = siblings.scatter(1, neighbours, True)
        return F.pad(positives, (1, 0), value=True)

    def forward(self, block1: Tensor, block2: Tensor, k_vsource: Tensor) -> tuple[Tensor, Tensor]:
        """Two moments of each video -> (logits [B, 1+K], positives [B, 1+K] bool).

        Args:
            block1: [B, 2, 3, T, H, W], RGB and flow clip of the query's moment.
            block2: [B, 2, 3, T, H, W], RGB and flow clip of the key's moment.
            k_vsource: [B] id of the recording that the video was cut from.
        """
        own, other = (1, 0) if self.reverse else (0, 1)
        if not self.queue_is_full:
            self.queue_is_full = bool((self.queue_label != -1).all())
        logits, key = self._contrast(block1[:, own], block2[:, own])
        with torch.inference_mode():
            second = embed(self.sampler, block2[:, other])
        positives = self._positives(k_vsource, second)
        if logits.requires_grad:
            self._enqueue(
                queue=key, queue_second=second, queue_vname=k_vsource, queue_label=torch.ones_like(k_vsource)
            )
        return logits, positives
