from dataset.options import add_data_options, add_database_options, places_of_data
from dataset.registry import SOURCES
from utils.options import Parser


def test_each_kind_of_source_has_an_option_for_each_of_its_streams():
    parser = Parser("test")
    add_database_options(parser)
    given = vars(parser.parse_args(["--rgb_lmdb", "a", "--flow-lmdb", "b", "--rgb_videos", "c"]))
    assert given == {"data_root": None, "rgb_lmdb": "a", "flow_lmdb": "b", "rgb_videos": "c"}
    assert set(places_of_data()) == given.keys()
    assert {f"{stream}_{kind}" for kind, facts in SOURCES.items() for stream in facts.places} <= given.keys()


def test_defaults_of_a_command():
    parser = Parser("test")
    add_data_options(parser, dataset="ucf101-2clip", clips=2, workers=16)
    args = parser.parse_args([])
    assert (args.dataset, args.num_seq, args.workers) == ("ucf101-2clip", 2, 16)
    assert (args.seq_len, args.ds, args.img_dim, args.batch_size) == (32, 1, 128, 32)
