"""torch.hub entry points: ``torch.hub.load(repo, "s3d", weights="CoCLR-ucf101-rgb")`` is such a network."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.nn as nn

dependencies = ["torch", "numpy", "tqdm"]


@contextlib.contextmanager
def _own_packages() -> Iterator[None]:
    """Import packages of this folder, although the caller may have others of these names, which stay."""

    def taken() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] in ("backbone", "model", "utils")]

    theirs = {name: sys.modules.pop(name) for name in taken()}
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield
    finally:
        sys.path.pop(0)
        for name in taken():
            del sys.modules[name]
        sys.modules.update(theirs)


with _own_packages():
    from backbone.select_backbone import NETWORKS, select_backbone
    from model.released import fetch
    from model.weights import load_backbone
    from utils.checkpoint import load_checkpoint


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def network(weights: str | None = None, offline: bool = False) -> nn.Module:
        """Clips [B, 3, T, H, W], normalised as ImageNet's, -> feature map [B, C, T', H', W'].

        weights: path, URL or released name of a checkpoint of ours or the original's; None: random. offline:
        no download.
        """
        backbone, _ = select_backbone(name)
        if weights is not None:
            path = fetch(weights, offline)
            load_backbone(backbone, load_checkpoint(path), path)
        return backbone

    return network


globals().update({name: _entry_point(name) for name in NETWORKS})
