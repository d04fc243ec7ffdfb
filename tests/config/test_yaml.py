"""YAML files and override values: YAML 1.2's core scalars, and nothing dropped silently."""

import pytest
import yaml

from distvae.config.yaml import ConfigError, dump_tree, read_tree, read_value
from distvae.system.formats import FORMAT, FormatError


@pytest.fixture
def read(tmp_path):
    """Reads a text as a file."""

    def read(text: str):
        path = tmp_path / "a.yaml"
        path.write_text(text, encoding="utf-8")
        return read_tree(path)

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-02-03", "2024-02-03"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("TRUE", True),
        ("~", None),
        ("", None),
        ("[1, a]", [1, "a"]),
        ("'1'", "1"),
        ("a # b", "a # b"),
        ("#1", "#1"),
    ],
)
def test_a_value_is_read_by_yaml_1_2_without_comments(text, value):
    found = read_value(text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["[1] # one", "[1] [2]", "--- 1", "&a 1", "a\nb", "!!int 1", "[1", "'a' b"])
def test_a_value_of_which_a_part_would_be_dropped_is_refused(text):
    with pytest.raises((yaml.YAMLError, ValueError)):
        read_value(text)


@pytest.mark.parametrize("value", ["no", "1e3", "12:30", "010", "true", "", "null", "é\u2028", "a:", 1e-3, None, [1.5]])
def test_what_is_dumped_is_read_back(read, value):
    text = dump_tree({"key": value})
    assert text.startswith(f"format: {FORMAT}\n")
    assert read(text) == {"key": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: !!python/object/apply:os.getcwd []",
            "apply:os.getcwd are not supported",
        ),
        ("a: &x [1]\nb: *x", "an alias can only stand for a single value"),
        ("a: 1\na: 2", "the key a is given twice"),
        ("- 1", "should hold keys and values"),
        ("a: [", "is not YAML"),
        ("a: " + "[" * 10_000, "nested too deeply"),
        ('a: "\\UFFFFFFFF"', "is not YAML"),
        ("format: 0", "should be a whole number from 1"),
    ],
)
def test_other_files_are_refused(read, text, message):
    with pytest.raises(ValueError, match="a.yaml: ") as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_of_a_single_value_and_an_empty_file_are_read(read):
    assert read("a: &x 1\nb: *x") == {"a": 1, "b": 1}
    assert read("") == {}


def test_a_newer_format_is_named(read):
    with pytest.raises(FormatError, match=f"has format {FORMAT + 1}"):
        read(f"format: {FORMAT + 1}")


def test_a_wrong_path_gets_a_hint(tmp_path, monkeypatch):
    (tmp_path / "configs" / "demo").mkdir(parents=True)
    (tmp_path / "configs" / "demo" / "kla.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for path in ("demo/kla", "kla.yaml", "kla", "configs/demo/kla"):
        with pytest.raises(ConfigError, match=r"did you mean configs/demo/kla\.yaml\?"):
            read_tree(path)
