from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main_nce
from scripts.evidence import variants
from scripts.evidence.variants import EMAN, FreshKeys, RisingMomentum, leave_one_out, warmed_up

SMALL = {"network": "s3d_quarter", "dim": 8, "K": 4, "m": 0.5, "T": 0.1}


@pytest.fixture
def clips():
    torch.manual_seed(0)
    return torch.randn(4, 3, 8, 32, 32)


@torch.no_grad()
def test_a_key_by_averaged_statistics_does_not_depend_on_its_batch(clips):
    model = EMAN(**SMALL).train()
    model.encoder_q(clips)
    model._momentum_update()
    torch.testing.assert_close(model._encode_keys(clips)[:2], model._encode_keys(clips[:2]))
    mean = model.encoder_q[0].Conv_1a.bn1.running_mean
    torch.testing.assert_close(model.encoder_k[0].Conv_1a.bn1.running_mean, mean / 2)


def test_keys_of_the_batch_are_negatives_but_for_the_own():
    model = FreshKeys(**SMALL)
    query, key = F.normalize(torch.randn(2, 3, 8), dim=2)
    logits = model._logits(query, key)
    assert logits.shape == (3, 1 + 4 + 3)
    torch.testing.assert_close(logits[1, 5], query[1] @ key[0] / 0.1)
    assert logits[:, 5:].diagonal().isneginf().all()


def test_momentum_rises_to_a_tenth_of_the_step():
    model = RisingMomentum(**SMALL)
    key, query = (next(encoder.parameters()) for encoder in (model.encoder_k, model.encoder_q))
    for steps, share in ((0, 0.5), (128, 0.275), (1000, 0.05)):
        with torch.no_grad():
            key.zero_()
            query.fill_(1)
        model.steps.fill_(steps)
        model._momentum_update()
        torch.testing.assert_close(key, torch.full_like(key, share))


def test_rate_rises_then_falls():
    rates = [warmed_up(1.0, epoch, 10, [8]) for epoch in (0, 4, 7, 8)]
    assert rates == pytest.approx([0.2, 1, 1, 0.1])


def test_each_video_is_searched_among_the_others_of_its_set():
    names = ["a-x/1", "a-x/2", "a-y/3", "a-y/4", "b-x/5", "b-y/6", "b-y/7"]
    videos = SimpleNamespace(names=names, labels=np.array([0, 0, 1, 1, 2, 3, 3]))
    features = torch.tensor([[1.0, 0], [1, 0.1], [-1, 0], [-1, 0.1], [0, 1], [0.1, -1], [0, -1]])
    alone = torch.tensor([1.0, 1, 1, 1]).mean(), torch.tensor([0.0, 1, 1]).mean()
    assert leave_one_out(features, videos) == pytest.approx(100 * (sum(alone) / 2).item())


def test_a_variant_changes_rate_and_options_of_small(monkeypatch):
    trained = []
    monkeypatch.setattr(
        main_nce, "main", lambda words: trained.append(main_nce.make_parser().parse_args(words))
    )
    monkeypatch.setattr(variants, "checkpoint_of", lambda run: run)
    for name, rate in (("paper", 1), ("old-keys", 1), ("3-times-the-rate", 2)):
        variants.train(name, "x-2clip", {"seq_len": 8, "ds": 2, "img_dim": 32}, seed=0, epochs=34, rate=rate)
    usual, old, _ = trained
    assert (old.moco_k, old.moco_m) == (128, 0.95) != (usual.moco_k, usual.moco_m)
    assert [args.lr for args in trained] == pytest.approx([usual.lr, usual.lr, 6 * usual.lr])
    assert {args.epochs for args in trained} == {34}
