"""The house holds: imports run downwards, no module shadows another, and the documents name what there is."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, needs

# From the ground up: a module imports from floors below its own, and within a floor only as listed.
FLOORS = [
    {"errors"},
    {"launcher", "streams", "heartbeat"},
    {"files", "pages", "cores", "readers"},
    {"config", "captions", "starts", "cross_entropy", "graphs"},
    {"arguments", "liveness", "model", "vocabulary", "sources"},
    {"batches", "corpus", "draws", "objective", "kl_control", "plateau"},
    {"runtime", "checkpoint", "scaling"},
    {"evaluation", "generation", "engine", "interruption"},
    {"tracking", "report", "measure"},
    {"resume", "rescoring"},
    {"sweep", "methods"},
    {"account", "paper"},
    {"sweep_plots"},
    {"sweep_report", "paper_report"},
    {"train", "cli"},
    {"tuning.trial", "tuning.scratch"},
    {"tuning.search"},
    {"tuning.driver"},
]
PACKAGE = ROOT / "distvae"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__init__"
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, dotted; `from distvae import x` counts as distvae.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    floor = next(i for i, floor in enumerate(FLOORS) if module in floor)
    below = set().union(*FLOORS[:floor])
    names = imported(MODULES[module])
    ours = {other for other in MODULES if f"distvae.{other}" in names}
    assert ours <= below, f"{module} imports {ours - below}"


def test_accelerate_stays_in_the_runtime_and_ray_where_sweeps_run():
    def users(package):
        return {m for m, path in MODULES.items() if any(name.split(".")[0] == package for name in imported(path))}

    assert users("accelerate") == {"runtime"}
    assert users("ray") == {"tuning.trial", "tuning.search", "tuning.driver"}


def test_plain_training_waits_for_no_engine_that_it_does_not_use():
    engines = {"deepspeed", "transformers", "ray", "optuna", "plotly", "matplotlib", "jinja2"}
    look = f"import sys, distvae.train, distvae.cli; print({engines} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_no_module_shadows_another():
    """A script in distvae/ has that folder first on its import path."""
    installed = {
        name
        for names in importlib.metadata.packages_distributions().items()
        for name in [names[0]]
        if name != "distvae"
    }
    taken = set(sys.stdlib_module_names) | installed
    assert not {module.split(".")[0] for module in MODULES} & taken


def section(title: str) -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_readme_names_every_module_and_no_other():
    tree = section("The code").split("```")[1]
    named = set(re.findall(r"^  ([\w/]+)\.py ", tree, flags=re.MULTILINE))
    assert {name.replace("/", ".") for name in named} == set(MODULES)
    folders = set(re.findall(r"^(\w+)/ ", tree, flags=re.MULTILINE))
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_the_readmes_commands_are_what_ci_runs():
    commands = section("Two commands").split("```")[1]
    promised = re.findall(r"^(make \w+)", commands, flags=re.MULTILINE)
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert promised
    assert set(promised) <= set(run)


def test_documents_link_to_what_is_there():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_no_placeholder_is_left_in_a_document():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert not re.findall(r"^[A-Z_]{5,}$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_what_a_test_needs_is_there_or_it_skips_or_fails(monkeypatch):
    needs(True, "is there")
    monkeypatch.delenv("DISTVAE_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Slurm"):
        needs(False, "no Slurm")
    monkeypatch.setenv("DISTVAE_REQUIRE", "1")
    with pytest.raises(pytest.fail.Exception, match="no Slurm"):
        needs(False, "no Slurm")
