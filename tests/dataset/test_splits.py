import pytest

from dataset.splits import class_order, even_split, find_split, read_classes, source_ids, ucf101_split
from utils.errors import UserError

UCF = [
    f"{folder}/v_{name}_g{g:02d}_c{c:02d}"
    for folder, name in (
        ("Hammering", "Hammering"),
        ("HammerThrow", "HammerThrow"),
        ("HandstandPushups", "HandStandPushups"),
    )
    for g in range(1, 26)
    for c in (1, 2)
]


def test_class_order_ignores_case():
    assert class_order(UCF) == ["Hammering", "HammerThrow", "HandstandPushups"]


@pytest.mark.parametrize(("split", "groups"), [(1, range(1, 8)), (2, range(8, 15)), (3, range(15, 22))])
def test_ucf101_rule(split, groups):
    parts = ucf101_split(UCF, split)
    assert {int(name.split("_g")[1][:2]) for name in parts["test"]} == set(groups)
    assert len(parts["test"]) == 3 * 7 * 2
    assert sorted(parts["train"] + parts["test"]) == sorted(UCF)


def test_foreign_name_is_not_ucf101():
    with pytest.raises(UserError, match="juggling/clip_7"):
        ucf101_split(["juggling/clip_7"], 1)


def test_clips_of_one_group_share_their_source():
    ids = source_ids(UCF)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 75
    assert sorted(set(ids)) == list(range(75))
    ranked = sorted({name.split("/")[1].rsplit("_", 1)[0] for name in UCF})
    assert [ranked[i] for i in ids] == [name.split("/")[1].rsplit("_", 1)[0] for name in UCF]
    assert len(set(source_ids(["a/x_1", "a/x_2"]))) == 2


def test_ucf_lists(tmp_path):
    (tmp_path / "trainlist02.txt").write_text("A b/v 1.avi 1\nB/w.mp4 12\n\nB/no_suffix\n")
    (tmp_path / "testlist02.txt").write_text("A b/take 2.mkv\n")
    parts, origin = find_split("mine", tmp_path, [], 2)
    assert parts == {"train": ["A b/v 1", "B/w", "B/no_suffix"], "test": ["A b/take 2"]}
    assert "trainlist" in origin


def test_hmdb51_lists(tmp_path):
    (tmp_path / "brush_hair_test_split1.txt").write_text("a b.avi 1 \nc.avi 2 \nd.avi 0 \n")
    parts, _ = find_split("hmdb51", tmp_path, [], 1)
    assert parts == {"train": ["brush_hair/a b"], "test": ["brush_hair/c"]}
    with pytest.raises(UserError, match="no HMDB51 lists"):
        find_split("hmdb51", tmp_path, [], 2)
    (tmp_path / "brush_hair_test_split1.txt").write_text("a.avi 7\n")
    with pytest.raises(UserError, match=r"a\.avi 7"):
        find_split("hmdb51", tmp_path, [], 1)


def test_split_csv(tmp_path):
    (tmp_path / "split.csv").write_text('"A/x, y.avi",train\nA/z,test\n')
    parts, _ = find_split("mine", tmp_path, [], 1)
    assert parts == {"train": ["A/x, y"], "test": ["A/z"]}
    (tmp_path / "split.csv").write_text("A/x,validation\n")
    with pytest.raises(UserError, match="A/x,validation"):
        find_split("mine", tmp_path, [], 1)


def test_even_split_is_said_aloud(tmp_path):
    names = [f"a/{i}" for i in range(8)] + [f"b/{i}" for i in range(3)]
    parts, origin = find_split("mine", tmp_path, names[::-1], 1)
    assert parts["test"] == ["a/3", "a/7"]
    assert len(parts["train"]) == 9
    assert "even split" in origin
    assert even_split(names) == parts


def test_classes_file(tmp_path):
    assert read_classes(tmp_path, ["b/1", "A/2"]) == ["A", "b"]
    (tmp_path / "classes.txt").write_text("b\nA\nunused\n", encoding="utf-8")
    assert read_classes(tmp_path, ["b/1", "A/2"]) == ["b", "A", "unused"]
    with pytest.raises(UserError, match="'c'"):
        read_classes(tmp_path, ["c/1"])


def test_list_that_is_no_text(tmp_path):
    (tmp_path / "trainlist01.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"trainlist01\.txt"):
        find_split("mine", tmp_path, [], 1)
