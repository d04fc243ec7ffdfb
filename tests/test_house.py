"""The structure of the repository: no package shadows another, and the documents name what exists."""

import configparser
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from tests.conftest import ROOT, needs

PACKAGE = ROOT / "distvae"
PACKAGES = sorted(path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("*/__init__.py"))


def test_plain_training_waits_for_no_engine_that_it_does_not_use():
    # FSDP2 imports sympy.
    engines = {"deepspeed", "torch.distributed.fsdp", "sympy"}
    others = {"transformers", "ray", "optuna", "plotly", "matplotlib", "jinja2", "sklearn", "scipy"}
    programs = "distvae.training.trainer, distvae.distributed.runtime, distvae.reports.comparison, distvae.api"
    look = f"import sys, distvae.train, distvae.cli, {programs}; print({engines | others} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# What takes a second or several to import, and serves compilers, sharding, or the reading of new sentences.
READING = {"datasets", "pandas", "multiprocess"}
SLOW = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp", "sympy"} | READING


def test_a_model_samples_and_a_training_begins_without_what_takes_long_to_import(tiny, finished, tmp_path):
    """A model samples without torch's compiler, and a corpus that is prepared is opened without ``datasets``."""
    script = (
        "import os, sys\nfrom distvae import cli, train\n"
        "assert cli.main(['sample', sys.argv.pop(1)]) == 0\n"
        f"assert not {SLOW} & set(sys.modules)\n"
        "from distvae.training.step import TrainStep\n"
        "def once(*arguments):\n"
        "    plain(*arguments)\n"
        f"    print({READING} & set(sys.modules), flush=True)\n"
        "    os._exit(0)\n"
        "plain, TrainStep.__call__ = TrainStep.__call__, once\n"
        "train.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, str(finished), str(tiny), f"run={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.endswith("\nset()\n"), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "--help",
        "config kl",
        "data nowhere.yaml",
        "sample nowhere",
        "evaluate nowhere",
        "push nowhere a/b",
        "train",
        "train nowhere.yaml",
        "train configs/own.yaml run={folder}/run moodel.latent_size=3",
        "sweep nowhere.yaml",
        "table --rows nowhere",
    ],
)
def test_an_answer_that_needs_no_model_waits_for_no_library_of_models(words, tmp_path):
    """PyTorch and ``datasets`` take seconds to import."""
    script = (
        "import sys\nfrom distvae.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "print({'torch', 'datasets', 'accelerate'} & set(sys.modules), file=sys.stderr)\nsys.exit(code)"
    )
    arguments = [word.format(folder=tmp_path) for word in words.split()]
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (0 if words in ("--version", "--help", "config kl") else 2), done.stderr
    assert done.stderr.endswith("set()\n"), done.stderr


def test_no_package_shadows_another():
    """A script in distvae/ has that folder first on its import path."""
    installed = {name for name in importlib.metadata.packages_distributions() if name != "distvae"}
    taken = set(sys.stdlib_module_names) | installed
    assert not set(PACKAGES) & taken


def test_a_wheel_has_every_package_and_template():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    found = setuptools.find_packages(str(ROOT), include=[setup["options.packages.find"]["include"]])
    modules = list(PACKAGE.rglob("*.py"))
    assert {".".join(path.parent.relative_to(ROOT).parts) for path in modules} == set(found)
    packed = {
        path
        for package, pattern in setup["options.package_data"].items()
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data == packed


def section(title: str) -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_readme_names_every_package_and_no_other():
    tree = section("The code").split("```")[1]
    assert sorted(re.findall(r"^  ([\w/]+)/ ", tree, flags=re.MULTILINE)) == PACKAGES
    folders = set(re.findall(r"^(\w+)/ ", tree, flags=re.MULTILINE))
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_the_readmes_commands_are_what_ci_runs():
    commands = section("Install and demo").split("```")[1]
    promised = re.findall(r"^(make \w+)", commands, flags=re.MULTILINE)
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert promised
    assert set(promised) <= set(run)


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files_and_headings_that_exist(document):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_no_placeholder_is_left_in_a_document(document):
    assert not re.findall(r"^[A-Z_]{5,}$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_readme_lists_every_page():
    pages = re.findall(r"^\| \[\w+\]\(docs/(\w+\.md)\)", section("Documentation"), flags=re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_what_contributing_quotes_is_in_the_files():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", guide, flags=re.MULTILINE | re.DOTALL)
    assert [path for path, _ in quoted] == [
        "distvae/methods/cyclical.py",
        "distvae/methods/cyclical.py",
        "tests/methods/test_cyclical.py",
        "distvae/methods/__init__.py",
        "docs/measures.md",
    ]
    for path, excerpt in quoted:
        assert excerpt.rstrip("\n") in (ROOT / path).read_text(encoding="utf-8"), path


def test_what_contributing_names_exists():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`([\w.]+/[\w./]*)`", guide):
        assert (ROOT / path).exists() or (PACKAGE / path).exists(), path


def test_what_a_test_needs_is_there_or_it_skips_or_fails(monkeypatch):
    needs(True, "is there")
    monkeypatch.delenv("DISTVAE_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Slurm"):
        needs(False, "no Slurm")
    monkeypatch.setenv("DISTVAE_REQUIRE", "1")
    with pytest.raises(pytest.fail.Exception, match="no Slurm"):
        needs(False, "no Slurm")
