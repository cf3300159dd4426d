import pytest

from dataset.catalogue import DATASETS, STREAMS, dataset_facts, lies_in_parts, parse_name


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("ucf101-2clip", ("ucf101", ("rgb",), 2)),
        ("ucf101-f-2clip", ("ucf101", ("flow",), 2)),
        ("k400-2stream-2clip", ("k400", ("rgb", "flow"), 2)),
        ("hmdb51", ("hmdb51", ("rgb",), 1)),
        ("k400-f", ("k400", ("flow",), 1)),
        ("k400-2stream", ("k400", ("rgb", "flow"), 1)),
        ("my-set", ("my-set", ("rgb",), 1)),
    ],
)
def test_dataset_names(name, meaning):
    parsed = parse_name(name)
    assert (parsed.base, parsed.streams, parsed.clips) == meaning


def test_what_is_known_of_datasets():
    assert [name for name in DATASETS if dataset_facts(name).whole_clip] == ["k400"]
    assert parse_name("k400-2stream-2clip").facts.keeps_all_checkpoints
    assert dataset_facts("ucf101").split_by == "names"
    assert parse_name("mine-2clip").facts.split_by == "lists or evenly"
    assert not parse_name("mine-2clip").facts.keeps_all_checkpoints
    assert {stream: facts.frames_lacking for stream, facts in STREAMS.items()} == {"rgb": 0, "flow": 1}


def test_parts_lie_apart_where_both_folders_are_there(tmp_path):
    assert lies_in_parts("k400", tmp_path)
    assert not lies_in_parts("mine", tmp_path)
    (tmp_path / "train").mkdir()
    assert not lies_in_parts("mine", tmp_path), "a class may be called train"
    (tmp_path / "val").mkdir()
    assert lies_in_parts("mine", tmp_path)
