"""YAML files and override values: YAML 1.2's core scalars, and nothing dropped silently."""

import pytest
import yaml

from distvae.config.keys import flatten
from distvae.config.load import load_config
from distvae.config.yaml import ConfigError, dump_tree, read_tree, read_value
from distvae.system.formats import FORMAT, FormatError
from tests.config.loading import refused


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


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.path=a=b", "a=b"),
        ("data.path='no'", "no"),
        ("data.path=stanfordnlp/snli", "stanfordnlp/snli"),
        ("data.path=007", "007"),
        ("data.path=-", "-"),
        ("data.train_size=null", None),
        ("data.train_size=", None),
        ("data.distinct=false", False),
        ("optimizer.learning_rate=1e-3", 0.001),
        ("optimizer.clip_norm=null", None),
        ("kl.target_rate=6", 6.0),
        # YAML would drop what follows ` #` as a comment.
        ("data.path=runs/exp #1", "runs/exp #1"),
        ("data.path=#1", "#1"),
        ("data.path=it's #1", "it's #1"),
        ("data.path='runs/exp #1'", "runs/exp #1"),
        ('data.path="a # b"', "a # b"),
        ("data.path= a b ", "a b"),
    ],
)
def test_the_value_of_an_override_is_yaml(load, override, value):
    found = dict(flatten(load("data: {train_size: 9}", override)))[override.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", ["missing.yaml", "no/such/folder.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    reason = "Is a directory" if name == "." else "No such file or directory"
    assert str(caught.value) == f"{path}: cannot be read as a config: {reason}"


@pytest.mark.parametrize("text", [b"run: caf\xe9\n", "seed: 1".encode("utf-16")])
def test_a_file_that_is_not_utf8_is_named(load, text):
    message = str(refused(load, text))
    assert "name.yaml: cannot be read as a config: " in message
    assert "utf-8" in message


def test_a_byte_order_mark_is_no_harm(load):
    assert load("\ufeffseed: 3").seed == 3


@pytest.mark.parametrize(
    "text",
    [
        "seed: [1",
        "seed: 1\n  kl: 3\n",
        "seed: {1",
        "\tseed: 1",
        "seed: @",
        "seed: *nowhere",
        "? [1, 2]\n: 3",
        "a\0: 1",
        "seed: !!python/object/apply:os.getcwd []",
    ],
)
def test_malformed_yaml_is_named_in_one_line(load, text):
    assert "name.yaml: is not YAML: " in str(refused(load, text))


@pytest.mark.parametrize("text", ["- seed", "seed", "3", "[]", "false"])
def test_a_file_must_hold_keys(load, text):
    assert "name.yaml: should hold keys and values" in str(refused(load, text))


@pytest.mark.parametrize(
    "value",
    [
        *("[1", "@x", "{a: 1", "*a", "'x", "a: b: c"),
        # Of these YAML would drop a part.
        *("[a, b] # c", "[a # b, c]", "{a: 1} # c", '"a" # b', "&a b", "--- a", "a\n# b", "# a\nb", "a\nb"),
    ],
)
def test_an_override_whose_value_is_not_yaml_is_named(load, value):
    message = f"{f'data.path={value}'!r}: the value is not YAML; quote it twice if it is text: 'data.path=\"…\"'"
    assert str(refused(load, "", f"data.path={value}")) == message


@pytest.mark.parametrize("value", ["2024", "null", "[a]", "a: b"])
def test_text_that_is_another_value_in_yaml(load, value):
    assert "input should be a valid string; quote it twice if it is text: 'data.path=" in str(
        refused(load, "", f"data.path={value}")
    )
    assert load("", f'data.path="{value}"').data.path == value


def test_a_number_with_a_comment_is_not_that_number(load):
    assert "kl.target_rate = '6 # six'" in str(refused(load, "", "kl.target_rate=6 # six"))
