import csv
import json
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adazeta.tasks.causal_lm import CausalLMTask
from adazeta.tasks.prompt import PromptTask
from adazeta.tasks.records import load_records
from tests.helpers.tiny_models import tiny_tokenizer

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
LINES = st.text(
    st.characters(codec="utf-8", exclude_characters='\0\t\n\r"'), min_size=1, max_size=12
)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
def test_the_text_of_a_csv_file_is_what_was_written(tmp_path, rows):
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    assert [tuple(record.values()) for record in load_records(path)] == rows


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
def test_the_text_of_a_jsonl_file_is_what_was_written(tmp_path, rows):
    path = tmp_path / "a.jsonl"
    records = [{"text": text, "label": label} for text, label in rows]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    assert list(load_records(path)) == records


@given(st.lists(st.tuples(st.sampled_from(['"', '" ', '"a" ', 'a "b"', ""]), LINES), min_size=1))
def test_the_text_of_a_tsv_file_without_quotation_is_what_was_written(tmp_path, rows):
    path = tmp_path / "a.tsv"
    texts = [f"{mark}{line}." for mark, line in rows]
    lines = ["text\tlabel", *(f"{text}\t{index}" for index, text in enumerate(texts))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    assert [record["text"] for record in load_records(path)] == texts


@given(st.lists(st.tuples(TEXTS, st.integers(0, 3).map(str)), min_size=1, max_size=6))
def test_the_text_of_a_tsv_file_with_quotation_is_what_was_written(tmp_path, rows):
    path = tmp_path / "a.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    assert [tuple(record.values()) for record in load_records(path)] == rows


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('" great fun\t1\na bad film\t0\nso dull "\t0\nfun\t1\n', None),
        ('"great" they said\t1\na bad film\t0\n', None),
        ('a "bad" film\t1\nso "dull"\t0\n', None),
        ('"He said ""hi"""\t1\na bad film\t0\n', ['He said "hi"', "a bad film"]),
        ('"two\nlines"\t1\na bad film\t0\n', ["two\nlines", "a bad film"]),
        ('"a\ttab"\t1\na bad film\t0\n', ["a\ttab", "a bad film"]),
        ("a bad\u2028film\t0\nso\x0bdull\x1e\t1\n", None),
        (" a bad film  \t0\n", None),
        ("a bad film\t0\r\ndull\t1\r\n", None),
    ],
)
def test_quotation_in_tsv_files_is_understood(tmp_path, content, texts):
    path = tmp_path / "a.tsv"
    end = "\r\n" if "\r\n" in content else "\n"
    path.write_text(f"text\tlabel{end}{content}", encoding="utf-8", newline="")
    if texts is None:
        texts = [line.split("\t")[0] for line in content.split(end) if line]
    assert [record["text"] for record in load_records(path)] == texts


@pytest.mark.parametrize(
    ("header", "content", "line"),
    [
        ("text\tlabel", 'dull\t1\n"great film"\t1\n', 3),
        ("text\tlabel", '"hello, ""world"""\t1\n"great film"\t1\n', 3),
        ("text\tlabel", '""\t1\n', 2),
        ("text", 'dull\n"great\nfilm"\n', 3),
    ],
)
def test_tsv_files_that_can_be_read_in_two_ways_are_refused(tmp_path, header, content, line):
    path = tmp_path / "a.tsv"
    path.write_text(f"{header}\n{content}")
    with pytest.raises(ValueError, match=f"a.tsv, line {line}: the quotation mark of .* .jsonl"):
        load_records(path)


def test_malformed_quotation_in_a_csv_file_names_the_line_and_the_rule(tmp_path):
    path = tmp_path / "a.csv"
    for content in ('dull,0\n"great" they said,1\nx,0\n', 'dull,0\n"great they said,1\nx,0\n'):
        path.write_text(f"text,label\n{content}")
        with pytest.raises(ValueError, match="a.csv, line 3: .*; a field that begins with a quot"):
            load_records(path)


def test_the_line_of_an_example_is_its_first_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n\n"two\nlines",7\nx,8\n')
    records = load_records(path)
    assert [records.place(index) for index in (0, 1)] == [f"{path}, line 3", f"{path}, line 5"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_fields_of_any_length_are_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    text = "film " * 60_000
    line = json.dumps({"text": text, "label": 1}) if suffix == ".jsonl" else f"{text}{{}}1"
    path.write_text(
        line
        if suffix == ".jsonl"
        else "text{0}label\n{1}{0}1\n".format("," if suffix == ".csv" else "\t", text)
    )
    before = csv.field_size_limit()
    assert load_records(path)[0]["text"] == text
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_an_empty_field_is_a_missing_value(tmp_path, suffix):
    path, delimiter = tmp_path / f"a{suffix}", "," if suffix == ".csv" else "\t"
    task = PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"])
    for row, message in ((("a film", ""), "the label is missing"), (("", "1"), "value is missing")):
        lines = [("text", "label", "note"), ("a film", "1", ""), (*row, "x")]
        path.write_text("".join(delimiter.join(line) + "\n" for line in lines))
        records = load_records(path)
        assert records[0] == {"text": "a film", "label": "1", "note": None}
        with pytest.raises(ValueError, match=f"a{suffix}, line 3: .*{message}"):
            task.encode_all(records)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": null, "label": 1}', "line 2: column 'text' .*missing"),
        ('{"text": NaN, "label": 1}', "line 2: column 'text' .*missing"),
        ('{"text": "a film", "label": null}', "line 2: the label is missing"),
        ('{"text": "a film", "label": NaN}', "line 2: the label is missing"),
        ('{"text": "a \\ud83d film", "label": 1}', "line 2: column 'text' .* half of a pair"),
        ('{"text": true, "label": 1}', "line 2: column 'text' holds True"),
    ],
)
def test_missing_and_broken_values_of_jsonl_name_the_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a film", "label": 1}}\n{line}\n')
    task = PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"])
    with pytest.raises(ValueError, match=message):
        task.encode_all(load_records(path))


def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "a", "label": 0, "text": "b"}\n')
    with pytest.raises(ValueError, match="a.jsonl, line 2: .*'text' stands twice"):
        load_records(path)


def test_a_mark_at_the_start_of_a_table_is_no_part_of_the_first_name(tmp_path):
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(f"\ufefftext{delimiter}label\nx{delimiter}1\n".encode())
        assert list(load_records(path)) == [{"text": "x", "label": "1"}]


def test_a_table_that_is_not_utf_8_names_the_line(tmp_path):
    for suffix in (".csv", ".tsv"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes("text\nx\n".encode("utf-16"))
        with pytest.raises(ValueError, match=f"a{suffix}, line 1: not UTF-8"):
            load_records(path)
        path.write_bytes(b"text\nx\ny\xe4\n")
        with pytest.raises(ValueError, match=f"a{suffix}, line 3: not UTF-8"):
            load_records(path)


def test_columns_that_no_template_names_do_not_matter(tmp_path):
    record = {"text": "a film", "label": 1, "input_ids": [1], "extra": {"a": None}, "idx": None}
    tasks = [
        PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"]),
        CausalLMTask(tiny_tokenizer(), "{text}"),
    ]
    for task in tasks:
        batch = task.collate([task.encode(record)])
        assert batch.keys() - {"positions"} == {"input_ids", "attention_mask", "labels"}


def test_data_sets_of_the_hub_have_the_names_of_their_classes(monkeypatch):
    class ClassLabel:
        names = ["neg", "pos"]

    class Data(list):
        features = {"text": object(), "label": ClassLabel()}

    module = types.ModuleType("datasets")
    rows = [{"text": "a film", "label": 1}, {"text": "a bad film", "label": 0}]
    module.load_dataset = lambda *arguments, **options: Data(rows)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    records = load_records("owner/name", "test")
    assert records.names == {"label": ["neg", "pos"]}
    words = {"neg": "terrible", "pos": "great"}
    task = PromptTask(tiny_tokenizer(), "{text} it was", words)
    assert task.encode_all(records).labels.tolist() == [1, 0]
    rows[1]["label"] = float("nan")
    with pytest.raises(ValueError, match=r"owner/name \(test\), example 1: the label is missing"):
        task.encode_all(load_records("owner/name", "test"))
