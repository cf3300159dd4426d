"""The networks and losses against recorded outputs of the original (tests/conformance)."""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "conformance"
sys.path.insert(0, str(HERE))
import check  # noqa: E402

KEYS = check.load_keys(HERE)
CASES = json.loads((HERE / "cases.json").read_text())
SEED = CASES.pop("_static_seed")


@pytest.mark.parametrize("net", ["s3d", "s3dg", "r50"])
def test_backbone(net):
    assert check.run_backbone(net, HERE, KEYS, SEED) < 1e-3


@pytest.mark.parametrize("name", ["cls_ft", "cls_last"])
def test_classifier(name):
    assert check.run_classifier(name, HERE, KEYS, SEED) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_pretraining_trace(name):
    """Several training steps: logits, positives, losses, queues and end weights, in one or two processes."""
    assert check.run_trace(name, CASES[name], HERE, KEYS) < 5e-3
