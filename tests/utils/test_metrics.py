import torch

from utils.metrics import Meters, top_k_hits


def test_meters_mean_over_the_steps_that_have_a_scalar():
    meters = Meters()
    meters.add({"loss": torch.tensor(1.0)})
    meters.add({"loss": torch.tensor(3.0), "precision": torch.tensor(0.5)})
    assert meters.flush() == [{"loss": 1.0}, {"loss": 3.0, "precision": 0.5}]
    assert meters.flush() == []
    meters.add({})
    meters.add({"loss": torch.tensor(5.0)})
    assert meters.flush() == [{}, {"loss": 5.0}]
    assert meters.means() == {"loss": 3.0, "precision": 0.5}


def test_top_k_hits():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5]])
    assert {k: v.item() for k, v in top_k_hits(logits, torch.tensor([0, 0])).items()} == {
        "top1": 0.5,
        "top5": 0.5,
    }
    positives = torch.zeros(2, 6, dtype=torch.bool)
    positives[0, 4] = positives[1, 5] = positives[1, 0] = True
    assert {k: v.item() for k, v in top_k_hits(logits, positives).items()} == {"top1": 0.5, "top5": 1.0}
