"""Format numbers of files."""

import pytest

from distvae.config.load import load_config, parse_config
from distvae.config.schema import Config
from distvae.config.yaml import dump_tree, read_tree
from distvae.system.errors import UserError
from distvae.system.files import check_as
from distvae.system.formats import FORMAT, FormatError, check_format, stamped


@pytest.mark.parametrize("content", [{}, {"format": 1}, {"format": FORMAT}, [], None, "text"])
def test_older_and_current_formats_are_read(content):
    check_format(content, "file")


def test_a_newer_format_is_refused_with_what_to_do():
    with pytest.raises(FormatError) as caught:
        check_format({"format": FORMAT + 1}, "a/file.json")
    assert str(caught.value) == (
        f"a/file.json: has format {FORMAT + 1}, and this version of distvae reads formats up to {FORMAT}: read it with"
        " the version that wrote it, or a newer one"
    )


@pytest.mark.parametrize("found", [0, -1, True, 1.0, "1", None, [1]])
def test_a_format_is_a_number(found):
    with pytest.raises(UserError, match="should be a whole number from 1"):
        check_format({"format": found}, "file")


def test_the_format_comes_before_what_is_wrong_by_an_older_one():
    with pytest.raises(FormatError):
        check_as(list[int], {"format": FORMAT + 1, "new": "form"}, "file", "numbers")


def test_a_yaml_file_has_its_format_and_is_read_without_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_tree({"seed": 1}), encoding="utf-8")
    assert path.read_text(encoding="utf-8").splitlines() == [f"format: {FORMAT}", "seed: 1"]
    assert read_tree(path) == {"seed": 1}
    path.write_text(f"format: {FORMAT + 1}\nnew_key: 1\n", encoding="utf-8")
    with pytest.raises(FormatError, match="config.yaml: has format"):
        load_config(path)


def test_what_is_stamped_is_of_the_current_format():
    assert list(stamped({"a": 1}).items()) == [("format", FORMAT), ("a", 1)]
    assert parse_config({"seed": 0}, "tree", stored=True) == Config()
