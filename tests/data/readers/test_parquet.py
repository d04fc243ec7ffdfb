import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.readers.files import ROWS, read, refused


def test_unused_columns_of_parquet_may_hold_anything(tmp_path):
    unused = {
        "map": pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int64())),
        "struct": pa.array([{"a": {"b": [1]}}] * 6),
        "null": pa.nulls(6),
        "decimal": pa.nulls(6, pa.decimal128(5, 2)),
        "text.part": pa.array(["x"] * 6),
    }
    table = pa.table({"text": ROWS, **unused}).replace_schema_metadata({"huggingface": "{broken", "pandas": "null"})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ROWS


def test_all_types_of_text_of_parquet_are_pooled(tmp_path):
    types = {"s": pa.string(), "l": pa.large_string(), "v": pa.string_view(), "n": pa.null()}
    columns = {name: pa.array([None] * 6 if name == "n" else ROWS, kind) for name, kind in types.items()}
    columns["d"] = pa.array(ROWS).dictionary_encode()
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "s", "l", "v", "d", "n", "s") == ROWS * 4 + [None] * 6 + ROWS


def test_bad_columns_of_parquet(tmp_path):
    columns = {"text": pa.array([["a"]]), "blob": pa.array([b"a"]), "n": pa.array([1])}
    table = pa.table([*columns.values(), pa.array(["a"]), pa.array(["b"])], [*columns, "twice", "twice"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "column text holds list<" in refused(tmp_path / "a.parquet")
    assert "column blob holds binary, not text" in refused(tmp_path / "a.parquet", "blob")
    assert "column n holds int64, not text" in refused(tmp_path / "a.parquet", "n")
    assert "has 2 columns with the name twice" in refused(tmp_path / "a.parquet", "twice")
