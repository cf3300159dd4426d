"""What the benchmarks print: medians, ranges and ratios by round, as Markdown."""

from benchmarks.common import Run, in_turns, markdown, rows, spread


def test_rows_compare_with_the_first_kind_round_by_round():
    runs = {"plain": [Run(None, 4.0, 2.0), Run(None, 6.0, 2.0)], "ours": [Run(None, 1.0, 0.5)] * 2}
    plain, ours = rows("step", runs, count=4)
    assert plain == {
        "step": "plain",
        "ms": "1250 (1000-1500)",
        "processor ms": "500 (500-500)",
        "per second": "0.8333 (0.6667-1)",
        "times as fast": "1 (1-1)",
    }
    assert ours["ms"] == "250 (250-250)"
    assert ours["times as fast"] == "5 (4-6)"


def test_kinds_take_turns_and_give_their_results():
    calls = []
    runs = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or 7}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert [run.result for run in runs["b"]] == [7, 7]


def test_another_table_begins_where_columns_differ():
    table = markdown([{"x": 1.0, "y": "-"}, {"x": 12345.6, "y": "b|c"}, {"z": 0.0001234}])
    assert "\n".join(table).split("\n") == [
        "",
        "| x | y |",
        "|---|---|",
        "| 1 | - |",
        "| 12346 | b\\|c |",
        "",
        "| z |",
        "|---|",
        "| 0.0001234 |",
    ]
    assert spread([3.0, 1.0, 2.0]) == "2 (1-3)"
