import os
import tempfile
import unicodedata
from pathlib import Path

import pytest

from dataset.footage import (
    Video,
    class_list,
    copy_lists,
    describe,
    find_lists,
    find_videos,
    listed_in,
)
from utils.errors import UserError


def fill(folder: Path, *names: str) -> Path:
    """Files of one byte; what they hold does not matter here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(footage) -> list[str]:
    return [video.name for video in footage.videos]


def test_videos_of_any_suffix_and_depth_by_relative_path(tmp_path):
    fill(tmp_path, "b/y.MOV", "b/x.mpg", "A/z.weird", "flat.mp4", "2023/01/cam 1.mkv", "b/no_suffix")
    footage = find_videos(tmp_path)
    assert names(footage) == ["2023/01/cam 1", "A/z", "b/no_suffix", "b/x", "b/y", "flat"]
    assert footage.videos[4] == Video("b/y", str(tmp_path / "b/y.MOV"), 1)
    assert footage.left_out == {}
    assert footage.ignored == {}


def test_other_files_are_counted_by_suffix(tmp_path):
    fill(
        tmp_path, "a/x.mp4", "a/x.JSON", "a/y.json", "notes.txt", "a/thumbnail.jpg", "a/.hidden", "a/._x.mp4"
    )
    footage = find_videos(tmp_path)
    assert names(footage) == ["a/x"]
    assert footage.ignored == {".json": 2, ".txt": 1, ".jpg": 1, "hidden": 2}
    assert describe(footage.ignored) == "; ignored as no videos: 2 hidden, 2 .json, 1 .jpg, 1 .txt"
    (tmp_path / "a/x.mp4").unlink()
    with pytest.raises(
        UserError, match=r"no video file and no folder of frames.* in .*; ignored as no videos: 2 "
    ):
        find_videos(tmp_path)


def test_a_folder_is_frames_if_it_holds_nothing_else_to_prepare(tmp_path):
    fill(tmp_path, "a/v/image_00001.jpg", "a/v/image_00002.jpg", "a/v/flow_x_00001.jpg", "a/v/info.txt")
    fill(tmp_path, "b/image_1.jpg", "b/x.avi", "img_00001.jpg", "c/frame_1.jpg", "d/picture.jpg")
    footage = find_videos(tmp_path)
    assert [(video.name, video.size) for video in footage.videos] == [("a/v", 3), ("b/x", 1), ("c", 1)]
    assert footage.ignored == {".jpg": 3}


def test_of_two_files_with_one_name_the_usual_suffix_is_taken(tmp_path):
    fill(tmp_path, "a/x.bak", "a/x.mp4", "a/x.mov")
    footage = find_videos(tmp_path)
    assert [video.path for video in footage.videos] == [str(tmp_path / "a/x.mov")]
    taken = f"another video has this name: {tmp_path / 'a/x.mov'} is taken"
    assert footage.left_out == {"a/x.mp4": taken, "a/x.bak": taken}


def test_links_that_lead_nowhere_or_in_a_circle_are_named(tmp_path):
    fill(tmp_path, "a/x.mp4")
    for link, target in {"loop.mp4": "loop.mp4", "gone.mp4": "nowhere", "up": "..", "twin": "../c"}.items():
        (tmp_path / "a" / link).symlink_to(target)
    fill(tmp_path, "c/y.mp4")
    footage = find_videos(tmp_path)
    assert names(footage) == ["a/twin/y", "a/x", "c/y"]
    assert footage.left_out.keys() == {"a/loop.mp4", "a/gone.mp4", "a/up"}
    assert footage.left_out["a/up"].endswith("a link to a folder that it lies in")
    (tmp_path / "a/x.mp4").unlink()
    (tmp_path / "c/y.mp4").unlink()
    with pytest.raises(UserError, match=r"no video file .*; a/gone\.mp4: cannot read .*: No such file"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match=r"cannot read --videos .*gone"):
        find_videos(tmp_path / "gone")


def test_forbidden_folder_is_named():
    with tempfile.TemporaryDirectory() as folder:
        videos = fill(Path(folder), "a/x.avi", "b/y.avi", "c/z.avi")
        videos.chmod(0o755)
        (videos / "b").chmod(0o000)  # neither listed nor entered
        (videos / "c").chmod(0o444)  # listed, not entered
        child = os.fork()
        if child == 0:
            if os.getuid() == 0:  # who reads everything
                os.setuid(65534)
            footage = find_videos(videos)
            reasons = [reason.rpartition(": ")[2] for reason in footage.left_out.values()]
            expected = names(footage) == ["a/x"] and footage.left_out.keys() == {"b", "c/z.avi"}
            os._exit(not (expected and reasons == ["Permission denied"] * 2))
        assert os.waitpid(child, 0)[1] == 0


def test_names_are_in_one_unicode_form_and_fit_a_list(tmp_path):
    apart = unicodedata.normalize("NFD", "café")
    fill(tmp_path, f"{apart}/x.mp4", "a/two\nlines.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.mp4")).write_bytes(b"x")
    footage = find_videos(tmp_path)
    assert names(footage) == ["café/x"]
    assert footage.videos[0].path == str(tmp_path / apart / "x.mp4")
    assert footage.left_out.keys() == {"'a/two\\nlines'", "'a/\\udcff'"}
    (tmp_path / "testlist01.txt").write_text(f"{apart}/x.mp4\n", encoding="utf-8")
    (tmp_path / "trainlist01.txt").write_text("café/x.mp4 1\n", encoding="utf-8")
    assert listed_in(tmp_path, {"café/x"}) == {"café/x"}


def test_where_classes_are_needed_other_places_are_left_out(tmp_path):
    footage = find_videos(fill(tmp_path, "a/x.mp4", "y.mp4", "a/deep/z.mp4"), in_classes=True)
    assert names(footage) == ["a/x"]
    assert footage.left_out == dict.fromkeys(["a/deep/z", "y"], "not in a folder of its class (class/video)")


def test_classes_are_folders_with_prepared_or_listed_videos(tmp_path):
    prepared, found = {"b/1", "A/1", "c d /1"}, {"b/1", "b/2", "__MACOSX/x", "broken/1", "annotations/xml"}
    assert class_list(tmp_path, prepared, found) == ["A", "b", "c d "]
    (tmp_path / "trainlist01.txt").write_text("broken/1.avi 1\nabsent/1.avi 2\n")
    (tmp_path / "testlist01.txt").write_text("A/1.avi\n")
    assert class_list(tmp_path, prepared, found) == ["A", "b", "broken", "c d "]


def test_class_list_follows_class_ind_where_that_has_all(tmp_path):
    prepared = {"b/1", "A/1", "c d/1"}
    assert class_list(tmp_path, prepared, prepared) == ["A", "b", "c d"]
    (tmp_path / "classInd.txt").write_text("1 c d\n2 b\n3 A\n4 e\n")
    assert class_list(tmp_path, prepared, prepared) == ["c d", "b", "A", "e"]
    (tmp_path / "classInd.txt").write_text("1 b\n")
    assert class_list(tmp_path, prepared, prepared) == ["A", "b", "c d"]


@pytest.mark.parametrize("stray", ["flat", "a/deep/x"])
def test_no_classes_where_a_prepared_video_lies_elsewhere(tmp_path, stray):
    assert class_list(tmp_path, {"a/1", stray}, {"a/1", stray}) == []
    assert class_list(tmp_path, {"a/1"}, {"a/1", stray}) == ["a"]  # it was left out


def test_lists_are_found_beside_or_among_the_videos_or_where_they_are_said_to_be(tmp_path, caplog):
    videos, beside, given = (tmp_path / name for name in ("V", "V_splits", "lists"))
    fill(videos, "a/x.mp4")
    assert find_lists(videos, None) is None
    fill(videos, "split.csv")
    assert find_lists(videos, None) == videos
    fill(beside, "trainlist1.txt")
    assert find_lists(videos, None) == beside
    fill(given, "classInd.txt", "trainlist_set1.txt", "readme.md")
    with pytest.raises(UserError, match="lists holds no split lists"):
        find_lists(videos, given)
    fill(given, "brush_hair_test_split1.txt")
    assert find_lists(videos, given) == given
    assert "trainlist_set1.txt is not read: by its name it is no split list" in caplog.text
    assert "readme.md" not in caplog.text


def test_lists_are_copied_and_others_are_not_left_beside_them(tmp_path):
    lists, out = tmp_path / "lists", tmp_path / "out"
    lists.mkdir()
    (lists / "trainlist2.txt").write_text("a/x.avi 1\n")
    (lists / "testlist02.txt").write_text("a/y.avi\n")
    (lists / "classInd.txt").write_text("1 a\n")
    copy_lists(lists, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "trainlist2.txt": "a/x.avi 1\n",
        "testlist02.txt": "a/y.avi\n",
        "classInd.txt": "1 a\n",
    }
    before = (out / "trainlist2.txt").stat().st_mtime_ns
    copy_lists(lists, out)
    copy_lists(None, out)
    copy_lists(out, out)
    assert (out / "trainlist2.txt").stat().st_mtime_ns == before
    assert listed_in(out, {"a/x"}) == {"a/x", "a/y"}
    assert listed_in(out, {"a/x"}, ("test",)) == {"a/y"}
    (lists / "trainlist2.txt").rename(lists / "trainlist02.txt")
    with pytest.raises(UserError, match=r"trainlist2\.txt is not among the lists in"):
        copy_lists(lists, out)
