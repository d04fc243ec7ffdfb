"""Command lines: where options may come, and what is said about settings that are not key=value."""

import argparse
import re
from pathlib import Path

import pytest

import distvae.cli
import distvae.sweeps.__main__
import distvae.table.__main__
import distvae.train
from distvae.config.load import load_config
from distvae.config.yaml import ConfigError
from distvae.system.arguments import Parser, counts, file, integer, names

CONFIG = "configs/own.yaml"


@pytest.fixture
def refused(capsys):
    """Runs a program on a command line that it must refuse; returns the one line that it prints."""

    def run(main, *arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        assert said.err.startswith("distvae: ")
        assert said.err.count("\n") == 1
        return said.err.removeprefix("distvae: ").rstrip()

    return run


@pytest.mark.parametrize(
    ("words", "write"),
    [
        (["--run", "x"], "run=x"),
        (["--run=x y"], "'run=x y'"),
        (["-run=x"], "run=x"),
        (["--run"], "run=VALUE"),
        (["--run", "seed=3"], "run=VALUE"),
        (["seed=3", "--kl.target_rate", "6"], "kl.target_rate=6"),
        (["--kl.taget-rate=6"], "kl.target_rate=6"),
        (["--target-rate=6"], "kl.target_rate=6"),
        (["--batch_size", "8"], "optimizer.batch_size=8 or evaluation.batch_size=8"),
        (["run", "x"], "run=x"),
        (["run", "=", "x", "seed=3"], "run=x"),
        (["seed=3", "run", "=x"], "run=x"),
        (["run=", "x"], "run=x"),
        (["seed"], "seed=VALUE"),
    ],
)
def test_a_setting_that_is_not_key_and_value_gets_a_hint(refused, words, write):
    line = refused(distvae.train.main, CONFIG, *words)
    assert line.endswith(f"; write {write}"), line


def test_a_setting_before_the_config_gets_a_hint(refused):
    for words in (["--run", "x", CONFIG], ["--run=x", CONFIG], ["seed=3", "--run", "x", CONFIG]):
        assert refused(distvae.train.main, *words).endswith("; write run=x")


@pytest.mark.parametrize("words", [["run=x", CONFIG], [CONFIG, "configs/demo/kla.yaml"], [CONFIG, "seed=3", CONFIG]])
def test_one_config_comes_before_the_settings(refused, words):
    line = refused(distvae.train.main, *words)
    assert "is not a config; the config comes before the settings" in line or "is a second config; give one" in line


def test_a_missing_config_is_all_that_is_required(refused):
    line = refused(distvae.train.main)
    assert line == ("the following arguments are required: CONFIG; usage: distvae train [-h] CONFIG [key=value ...]")


@pytest.mark.parametrize("key", ["--kl.target_rate=6", "--target_rate=6"])
def test_each_program_knows_its_settings(refused, key):
    assert refused(distvae.sweeps.__main__.main, "configs/sweep/demo.yaml", key).endswith("write set.kl.target_rate=6")
    assert refused(distvae.sweeps.__main__.main, "configs/sweep/demo.yaml", "--num-samples", "3").endswith(
        "write num_samples=3"
    )
    assert refused(distvae.table.__main__.main, key).endswith("write kl.target_rate=6")


def test_what_is_no_setting_gets_the_usage(refused):
    assert refused(distvae.table.__main__.main, "--folders").startswith(
        "unrecognized arguments: --folders; usage: distvae table [-h]"
    )
    assert refused(distvae.table.__main__.main, "--run=x").startswith(
        "unrecognized arguments: --run=x; usage: "
    )  # see --folder


@pytest.mark.parametrize(
    "words",
    [
        ["--count", "3", "a", "b=1", "c=2"],
        ["a", "--count", "3", "b=1", "c=2"],
        ["a", "b=1", "--count=3", "c=2"],
        ["a", "b=1", "c=2", "--count", "3"],
        ["a", "--count=3", "--", "b=1", "c=2"],
    ],
)
def test_options_come_anywhere(words):
    parser = Parser()
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--count", type=int)
    assert vars(parser.parse_args(words)) == {"config": "a", "overrides": ["b=1", "c=2"], "count": 3}


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("configs/own", "configs/own.yaml"),
        ("own", "configs/own.yaml"),
        ("demo/kla.yaml", "configs/demo/kla.yaml"),
        ("demo", "configs/base/demo.yaml or configs/sweep/demo.yaml"),
        ("configs/demo/own.yaml", "configs/own.yaml"),
        ("nowhere", None),
        ("**", None),
        ("x" * 252, None),
    ],
)
def test_a_config_that_is_elsewhere_is_named(given, hint):
    with pytest.raises(ConfigError) as error:
        load_config(given)
    assert re.search(r"; did you mean (.*)\?$|$", str(error.value))[1] == hint


@pytest.mark.parametrize(("value", "columns"), [("a,b", ("a", "b")), ("text", ("text",))])
def test_a_list_is_written_as_one(value, columns):
    with pytest.raises(ConfigError) as error:
        load_config(CONFIG, [f"data.columns={value}"])
    write = re.search(r"; a list: write '(.*)'$", str(error.value))[1]
    assert load_config(CONFIG, [write]).data.columns == columns


def test_counts_are_numbers_and_all():
    assert counts("10,100,all") == [10, 100, None]
    assert counts("all") == [None]
    for text in ("", "0", "10,", "ten", "-3", "all,x"):
        with pytest.raises(argparse.ArgumentTypeError, match="should be whole numbers from 1 or all"):
            counts(text)


def test_a_whole_number_has_limits():
    assert [integer(1)(text) for text in ("1", str(2**31 - 1))] == [1, 2**31 - 1]
    assert integer(0, None)(str(10**30)) == 10**30
    for text in ("0", "-1", "1.5", "one", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text!r}: should be a whole number of at least 1"):
            integer(1)(text)
    with pytest.raises(argparse.ArgumentTypeError, match="'2147483648': should be at most 2147483647"):
        integer(1)("2147483648")


def test_a_file_to_write_has_a_name():
    assert file("a/b.json") == Path("a/b.json")
    for wrong in ("", "-"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^'{wrong}': should be the name of a file$"):
            file(wrong)


def test_names_are_different_and_have_commas_between():
    assert names("intent,the domain") == ("intent", "the domain")
    for wrong in ("", "a,", ",a", "a,,b", "a,a"):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{wrong!r}: should be different names")):
            names(wrong)
