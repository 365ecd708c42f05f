"""Rows of results keep their keys and their values from file to file; what is no row is refused with its line."""

import json
from dataclasses import replace

import pytest

from glyphlm.base.errors import InputError
from glyphlm.evaluation.rows import ResultRow, keep_results, read_results

ROW = ResultRow("mmlu", "likelihood", "letters", "", "accuracy", 0.5, 0.25, 0.75, "Wilson 95% over items", items=12, cut=0,
                source="mmlu/test", made_from={"model": "m", "settings": {"limit": None}})  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_has_these_keys_in_a_file(tmp_path):
    assert ROW.to_json() == {
        "task": "mmlu", "protocol": "likelihood", "scoring": "letters", "subject": "", "metric": "accuracy", "value": 0.5,
        "low": 0.25, "high": 0.75, "interval": "Wilson 95% over items", "items": 12, "cut": 0, "source": "mmlu/test",
        "made_from": {"model": "m", "settings": {"limit": None}},
    }  # fmt: skip
    named = replace(ROW, run="mine", others={"later": [1]})
    assert read_results(write(tmp_path / "rows.jsonl", ROW.to_json(), named.to_json())) == [ROW, named]
    assert read_results(tmp_path / "none.jsonl") == []


def test_bits_per_byte_of_the_first_versions_are_read(tmp_path):
    (row,) = read_results(write(tmp_path / "rows.jsonl", {"task": "bpb", "bits_per_byte": 1.5, "bytes": 9, "source": "x"}))
    assert (row.value, row.metric, row.protocol) == (1.5, "bits_per_byte", "likelihood")
    assert row.low is None and row.items_ends == (1.5, 1.5)


@pytest.mark.parametrize("wrong", [
    {"value": "high"}, {"value": None}, {"value": True}, {"low": None}, {"items": 1.5}, {"task": 7}, {"made_from": [1]},
    {"interval": None}, {"run": 3},
])  # fmt: skip
def test_what_is_not_a_row_is_refused_with_file_line_and_key(tmp_path, wrong):
    path = write(tmp_path / "rows.jsonl", ROW.to_json(), ROW.to_json() | wrong)
    with pytest.raises(InputError, match=f"rows.jsonl line 2.*{next(iter(wrong))}.*delete that line"):
        read_results(path)
    with pytest.raises(InputError, match="line 2"):
        keep_results(path, [ROW])
    assert len(path.read_text().splitlines()) == 2


def test_rows_of_the_same_run_task_protocol_and_source_are_replaced(tmp_path):
    path, new = tmp_path / "results.jsonl", replace(ROW, value=0.75)
    others = [replace(ROW, source="b"), replace(ROW, protocol="sampled"), replace(ROW, run="r", others={"kept": 1})]
    keep_results(path, [ROW, replace(ROW, subject="y"), *others])
    keep_results(path, [new])
    assert read_results(path) == [*others, new]
