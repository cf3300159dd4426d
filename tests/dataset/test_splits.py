import unicodedata

import pytest

from dataset.splits import (
    class_order,
    even_split,
    find_split,
    find_split_lists,
    listed_videos,
    read_classes,
    source_ids,
    ucf101_split,
)
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


def test_ucf101_has_three_splits():
    with pytest.raises(UserError, match="1, 2 and 3, not 4; check --which_split"):
        ucf101_split(UCF, 4)


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


def test_classes_file_as_prepare_writes_it(tmp_path):
    apart = unicodedata.normalize("NFD", "café")
    (tmp_path / "classes.txt").write_text("trailing \ncafé\n", encoding="utf-8")
    assert read_classes(tmp_path, ["trailing /1", f"{apart}/2"]) == ["trailing ", apart]
    (tmp_path / "classes.txt").write_text("")
    assert read_classes(tmp_path, ["flat", "a/deep/x"]) == []  # no labels


@pytest.mark.parametrize("number", ["", "1", "01", "001"])
def test_lists_are_read_whatever_the_zeros_of_their_number(tmp_path, number):
    (tmp_path / f"trainlist{number}.txt").write_text("a/1.avi 1\n")
    (tmp_path / f"testlist{number}.txt").write_text("a/2.avi\n")
    names = ["a/1", "a/2"]
    assert find_split("mine", tmp_path, names, 1)[0] == {"train": ["a/1"], "test": ["a/2"]}
    with pytest.raises(UserError, match="no lists for split 2"):
        find_split("mine", tmp_path, names, 2)


def test_lists_of_the_original_are_read(tmp_path):
    (tmp_path / "train_split02.csv").write_text("/datasets/UCF101/frame/a/1/,4\nC:\\frame\\a\\2\\,12\n")
    (tmp_path / "val_split2.csv").write_text("/frame/a/3/,4\n")
    assert find_split("mine", tmp_path, [], 2)[0] == {"train": ["a/1", "a/2"], "test": ["a/3"]}


def test_two_files_of_one_list_or_one_without_the_other_are_refused(tmp_path):
    (tmp_path / "trainlist1.txt").write_text("a/1.avi\n")
    with pytest.raises(UserError, match=r"trainlist1\.txt needs a list of the other part of split 1"):
        find_split("mine", tmp_path, ["a/1"], 1)
    (tmp_path / "trainlist01.txt").write_text("a/1.avi\n")
    with pytest.raises(UserError, match=r"trainlist01\.txt and .*trainlist1\.txt are the same list"):
        find_split_lists(tmp_path)


def test_listed_videos_are_spelled_as_the_database_does():
    apart = unicodedata.normalize("NFD", "é")
    names = ["a/take 2", "a/x.y", "a/film", f"a/{apart}", "a/end ", "a/odd.dat 3"]
    lines = {
        "a/take 2.mkv": "a/take 2",
        "a/take 2": "a/take 2",
        "a/take 2.mkv 7": "a/take 2",
        "a/x.y": "a/x.y",
        "a/x.y.avi 1": "a/x.y",
        "a/film.MOV": "a/film",
        "a/film.weird": "a/film",  # whatever its suffix, if there is such a video
        "a/é.avi": f"a/{apart}",
        "a/end .avi": "a/end ",
        "a/odd.dat 3": "a/odd.dat 3",
        "a/absent.MOV 2": "a/absent",
        "a/absent.weird": "a/absent.weird",
    }
    assert dict(zip(lines, listed_videos(lines, names), strict=True)) == lines


def test_list_that_is_no_text(tmp_path):
    (tmp_path / "trainlist01.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"trainlist01\.txt"):
        find_split("mine", tmp_path, [], 1)
