"""What is loaded from which checkpoint, and what a checkpoint that does not fit is said to be."""

import pytest
import torch

from backbone.select_backbone import select_backbone
from model.classifier import LinearClassifier
from model.pretrain import CoCLR, InfoNCE
from model.weights import check_classes, load_backbone, load_classifier, origin
from utils.errors import UserError


@pytest.fixture(scope="module")
def coclr():
    torch.manual_seed(1)
    state = CoCLR("s3d", 16, 32).state_dict()
    for key, value in state.items():
        if key.startswith(("encoder_k.", "sampler.")) and value.is_floating_point():
            value += 1  # so that no other encoder is taken for the query encoder
    return {"epoch": 182, "state_dict": state}


def test_query_encoder_becomes_the_backbone(coclr):
    backbone = select_backbone("s3d")[0]
    load_backbone(backbone, coclr, "x")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, coclr["state_dict"][f"encoder_q.0.{key}"]), key


def test_a_classifiers_backbone_loads_too():
    trained = LinearClassifier(3, "s3d").state_dict()
    backbone = select_backbone("s3d")[0]
    load_backbone(backbone, {"state_dict": trained}, "x")
    assert torch.equal(
        backbone.state_dict()["Conv_1a.conv1.weight"], trained["backbone.Conv_1a.conv1.weight"]
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda s: {"encoder_q.0.layer4.2.bn1.weight": torch.ones(3)},
            "seems to be InfoNCE on r50; 0 of the",
        ),
        (lambda s: {"a": torch.ones(1)}, "an unknown model on an unknown network; 0 of the"),
        (lambda s: dict(list(s.items())[:50]), r"on s3d; \d+ of the"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what_it_seems_to_be(coclr, state, message):
    with pytest.raises(UserError, match=message):
        load_backbone(select_backbone("s3d")[0], {"state_dict": state(coclr["state_dict"])}, "x")


def test_another_network_is_an_error():
    state = InfoNCE("s3dg", 16, 32).state_dict()
    with pytest.raises(
        UserError, match=r"InfoNCE on s3dg; \d+ of the \d+ tensors wanted match, .*; check --net"
    ):
        load_backbone(select_backbone("s3d")[0], {"state_dict": state}, "x")


def test_class_lists_must_agree():
    model = LinearClassifier(3, "s3d", use_dropout=False, use_l2_norm=True, use_final_bn=True)
    saved = {"state_dict": model.state_dict(), "classes": ["a", "b", "c"]}
    check_classes(saved, ["a", "b", "c"], "x")
    with pytest.raises(UserError, match="x tells 3 classes apart, the dataset has 2"):
        check_classes(saved, ["a", "b"], "x")
    with pytest.raises(UserError, match="'b' stands where the dataset has 'z'"):
        check_classes(saved, ["a", "z", "c"], "x")
    with pytest.raises(UserError, match=r"has no final_fc\.N\.weight"):
        check_classes({"state_dict": {"final_fc.weight": torch.ones(3, 2)}}, ["a", "b", "c"], "x")
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(torch.nn.Linear(1, 1), {"state_dict": {"encoder_q.0.weight": None}}, "x")
    loaded = load_classifier(saved, "s3d", ["a", "b", "c"], "x")
    assert loaded.use_l2_norm
    assert loaded.final_bn is not None
    original = {"state_dict": LinearClassifier(3, "s3d").state_dict()}  # without classes, finetuned
    loaded = load_classifier(original, "s3d", ["a", "b", "c"], "x")
    assert not loaded.use_l2_norm
    assert loaded.final_bn is None


def test_origin(coclr):
    assert origin(coclr, "CoCLR-ucf101-rgb-128-s3d-ep182.tar") == {
        "method": "CoCLR",
        "pretrained_on": "ucf101",
        "pretrain_epoch": 182,
    }
    ours = {
        "epoch": 3,
        "state_dict": {"encoder_q.0.Conv_1a": 0, "queue_label": 0},
        "options": {"dataset": "k400-f-2clip"},
    }
    assert origin(ours, "epoch3.pth.tar") == {
        "method": "UberNCE",
        "pretrained_on": "k400",
        "pretrain_epoch": 3,
    }
    second = ours | {
        "state_dict": {"encoder_q.0.Conv_1a": 0, "sampler.0": 0},
        "options": {"dataset": "ucf101-2stream-2clip", "name_prefix": "Cycle2-FlowMining_"},
    }
    assert origin(second, "x") == {
        "method": "CoCLR",
        "pretrained_on": "ucf101",
        "pretrain_epoch": 3,
        "cycle": 2,
    }
    handed_on = {"state_dict": {"final_fc.0.weight": 0}, "origin": {"method": "CoCLR"}}
    assert origin(handed_on, "x") == {"method": "CoCLR"}
    assert origin({"state_dict": {"final_fc.0.weight": 0}}, "x")["method"] == "unknown"
