"""``python -m tests.faults.folders --seed 0 --count 200``: damage folders, and run commands on them.

The folders are of runs, sweeps and exports. A command must exit with 0, or with 2 and a line that names the folder,
within seconds. Its output has no live terminal codes, Markdown or HTML; it changes nothing that it only reads; it shows
no number that another file of the folder contradicts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import gc
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import yaml
from markdown_it import MarkdownIt
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from distvae import cli, train
from distvae.config.yaml import dump_tree, read_tree
from distvae.system.errors import printable
from distvae.system.files import MANIFEST, sha256
from tests.conftest import PATIENCE, TINY
from tests.sweep_folders import pbt_sweep, small_sweep

# A command's limit of additional memory, in bytes.
MEMORY = 8 * 2**30

HOSTILE = [
    "\x1b[31mred\x1b]0;title\x07",
    "a\r\nWARNING all is well",
    "\u202egnp.exe\u2066\u200f",
    "\x9b2J\x7f\x00",
    "![x](http://evil.example/x.png)",
    "[x](javascript:alert(1)) https://evil.example www.evil.example",
    "<img src=http://evil.example/x onerror=alert(1)></script><script>alert(1)</script>",
    "| a | `b` **c** $d$ <a href='javascript:alert(1)'>e</a>",
    "{{ 7 * 7 }} {% raw %} %s %(x)s {0}",
    "\ud800",
    "x" * 100_000,
]
WRONG = [
    None, True, False, 0, 1, -1, -0.5, 7, 10**6, 10**30, 10**400, 1e308, -1e308, 1e-308, float("nan"), float("inf"),
    -float("inf"), "", "7", "nan", [], {}, [[]], [1, "a", None], {"a": {"b": []}}, "DEEP",
]  # fmt: skip

# Damage to values that no other file holds, so that a command must show them as they are: times, machines, reasons,
# drawn values, standard errors and scores of epochs.
OWN_TRUTH = re.compile(
    r"environment\.json|status\.json|sweep\.json|trials\.json|sweep\.yaml|base\.yaml|lineage\.json"
    r"|starts/.*\.json|config\.yaml"
    # A missing last record cannot be noticed; any other is.
    r"|metrics\.jsonl: (gone|bytes)"
    # A run without results is one that has not finished.
    r"|table\.py --plan, .*results\.json: gone"
    # The means stay the same.
    r"|sentences\.parquet: .*other order"
    r"|metrics\.jsonl:.*(standard_error|seconds|saving|kl_weight|learning_rate|objective|skipped|verdict|active_units"
    r"|mutual_information|importance_samples|effective_samples|seed|nll_excess|train\.sentences|start|step|latent)"
    r"|results\.json:.*(effective_samples|active_units|nll_excess|seed|importance_samples|world_size|data|stages|converged"
    r"|passed_over|best_epoch|floor|split|latent|unknown)"
    r"|finalists/.*(standard_error|effective_samples|active_units|nll_excess|seed|importance_samples|world_size|data"
    r"|mutual_information|vocabulary|floor|latent|unknown)"
)

# The γ of the runs without pretraining.
LINEAR = "kl={policy: linear, anneal_epochs: 2}"


# -- Folders -----------------------------------------------------------------------------------------------------------


def nursery(folder: Path) -> None:
    """Make the folders to damage: trained runs, an export, and sweeps as a sweep writes them."""
    config = folder / "tiny.yaml"
    config.write_text(TINY.replace("test_size: 20}", f"test_size: 20, cache: {folder / 'cache'}}}"), encoding="utf-8")
    whole = folder / "whole"
    for name, more in (("run", []), ("other", ["pretrain.max_epochs=0", LINEAR])):
        with contextlib.redirect_stdout(io.StringIO()):
            assert train.main([str(config), f"run={whole / name}", *more]) == 0
    stopped = whole / "stopped"
    shutil.copytree(whole / "run", stopped, symlinks=True)
    for name in ("results.json", "sentences.parquet"):
        (stopped / name).unlink()
    _rewrite(stopped / "config.yaml", str(whole / "run"), str(stopped))
    shutil.copytree(whole / "run" / "best", whole / "export")
    with contextlib.redirect_stdout(io.StringIO()):
        small_sweep(whole / "sweep")
        pbt_sweep(whole / "population")
    for name in ("base.yaml", "file.yaml"):
        (whole / name).unlink()
    (folder / "rows").mkdir()
    table = whole / "table" / "seed-0"
    shutil.copytree(whole / "other", table / "kla", symlinks=True)
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    tree |= {"pretrain": {"max_epochs": 0}} | yaml.safe_load(LINEAR.replace("=", ": ", 1))
    (folder / "rows" / "kla.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def _rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def tree(folder: Path, leaving: tuple[str, ...] = ()) -> dict[str, str]:
    """Return kind and content of every path in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_file():
            large = path.stat().st_size > 2**26
            found[name] = f"size {path.stat().st_size}" if large else hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return {name: value for name, value in found.items() if name not in leaving}


# -- Damages -----------------------------------------------------------------------------------------------------------


def _places(content: Any, at: tuple = ()) -> list[tuple]:
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [place for key in keys for place in [(*at, key), *_places(content[key], (*at, key))]]


def _change(content: Any, chance: random.Random, hostile: bool) -> tuple[Any, str]:
    """Return a copy of plain values with one place changed, and the place."""
    content = copy.deepcopy(content)
    places = _places(content)
    if not places:
        return chance.choice(WRONG[:-1]), ""
    if hostile:
        texts = [place for place in places if isinstance(_at(content, place), str)]
        places = texts or places
    place = chance.choice(places)
    parent, key = _at(content, place[:-1]), place[-1]
    how = "hostile" if hostile else chance.choice(["wrong", "wrong", "wrong", "little", "gone", "double", "key"])
    value = parent[key]
    if how == "hostile":
        parent[key] = f"{value if chance.random() < 0.3 else ''}{chance.choice(HOSTILE)}"
    elif how == "little" and isinstance(value, (int, float)) and not isinstance(value, bool):
        parent[key] = value + chance.choice([-1, 1]) if isinstance(value, int) else value * chance.choice([0.9, 1.05])
    elif how == "gone":
        del parent[key]
    elif how == "double" and isinstance(parent, list):
        parent.insert(key, value)
    elif how == "key" and isinstance(parent, dict):
        parent[chance.choice(HOSTILE[:5])] = parent.pop(key)
    else:
        parent[key] = chance.choice(WRONG)
    return content, ".".join(map(str, place))


def _at(content: Any, place: tuple) -> Any:
    for key in place:
        content = content[key]
    return content


def _json(content: Any) -> str:
    deep = "[" * 100_000 + "]" * 100_000
    return json.dumps(content, ensure_ascii=True).replace('"DEEP"', deep)


def structured(path: Path, chance: random.Random, hostile: bool = False) -> str:
    """Change a value of a file of JSON, lines of JSON, YAML, a table or tensors."""
    if path.suffix == ".json":
        content, place = _change(json.loads(path.read_text(encoding="utf-8")), chance, hostile)
        path.write_text(_json(content), encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        number = chance.randrange(len(lines))
        how = chance.choice(["value"] * 6 + ["gone", "twice", "swapped"])
        place = how
        if how == "value":
            content, place = _change(json.loads(lines[number]), chance, hostile)
            lines[number] = _json(content)
        elif how == "gone":
            del lines[number]
        elif how == "twice":
            lines.insert(number, lines[number])
        else:
            lines.reverse()
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    elif path.suffix == ".yaml":
        content, place = _change(read_tree(path), chance, hostile)
        text = dump_tree(content) if isinstance(content, dict) else yaml.safe_dump(content)
        path.write_bytes(text.replace("DEEP", "[" * 2000 + "]" * 2000).encode("utf-8", "surrogatepass"))
    elif path.suffix == ".parquet":
        place = _damage_table(path, chance)
    elif path.suffix == ".safetensors":
        place = _damage_tensors(path, chance)
    else:
        return raw(path, chance)
    return f"{place} {'made hostile' if hostile else 'changed'}"


def _damage_table(path: Path, chance: random.Random) -> str:
    columns = {name: column.to_numpy().copy() for name, column in zip(*_columns(path), strict=True)}
    name = chance.choice(list(columns))
    how = chance.choice(["a value", "NaN", "gone", "text", "null", "shorter", "more", "nested", "other order"])
    changed: dict[str, Any] = dict(columns)
    if how == "a value":
        columns[name][chance.randrange(len(columns[name]))] += 1
    elif how == "NaN":
        columns[name][0] = np.nan
    elif how == "gone":
        del changed[name]
    elif how == "text":
        changed[name] = [f"{HOSTILE[0]}{i}" for i in range(len(columns[name]))]
    elif how == "null":
        changed[name] = [None] * len(columns[name])
    elif how == "shorter":
        changed = {key: values[:-1] for key, values in columns.items()}
    elif how == "more":
        changed[HOSTILE[0]] = columns[name]
    elif how == "nested":
        changed[name] = [[1.0]] * len(columns[name])
    else:
        changed = {key: values[::-1] for key, values in columns.items()}
    parquet.write_table(pyarrow.table(changed), path)
    return f"{name}: {how}"


def _columns(path: Path) -> tuple[list[str], list]:
    table = parquet.read_table(path)
    return table.column_names, table.columns


def _damage_tensors(path: Path, chance: random.Random) -> str:
    tensors = load_file(path)
    name = chance.choice(list(tensors))
    how = chance.choice(["NaN", "gone", "shape", "type", "more", "empty"])
    if how == "NaN":
        tensors[name].view(-1)[0] = float("nan")
    elif how == "gone":
        del tensors[name]
    elif how == "shape":
        tensors[name] = tensors[name].new_zeros(3, 5)
    elif how == "type":
        tensors[name] = tensors[name].to(chance.choice([torch.float64, torch.bfloat16, torch.int8]))
    elif how == "more":
        tensors[HOSTILE[0]] = torch.zeros(2)
    else:
        tensors = {}
    save_file(tensors, path)
    return f"{name}: {how}"


def raw(path: Path, chance: random.Random) -> str:
    """Damage a file's bytes."""
    content = bytearray(path.read_bytes())
    how = chance.choice(["flip", "flip", "truncate", "empty", "garbage", "append", "nul"])
    if how == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "truncate":
        del content[chance.randrange(len(content) + 1) :]
    elif how == "empty":
        content.clear()
    elif how == "append":
        content += chance.choice([b"x", b"\n", b"{}\n", b"\xff"])
    elif how == "nul":
        content[:] = bytes(len(content))
    else:
        content[:] = chance.randbytes(200)
    path.write_bytes(content)
    return f"bytes: {how}"


def special(path: Path, chance: random.Random) -> str:
    """Replace a file by something that is not a file."""
    outside = path.parents[1] / f"outside-{path.name}"
    how = chance.choice(["gone", "pipe", "folder", "link out", "device", "nowhere", "loop", "sparse", "socket"])
    shutil.copy(path, outside)
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "link out":
        path.symlink_to(outside.resolve())
    elif how == "device":
        path.symlink_to(chance.choice(["/dev/zero", "/dev/tty", "/dev/full"]))
    elif how == "nowhere":
        path.symlink_to(path.parent / "nowhere")
    elif how == "loop":
        path.symlink_to(path)
    elif how == "sparse":
        with path.open("wb") as file:
            file.truncate(2**40)
    elif how == "socket":
        os.mknod(path, 0o140600)
    if how != "link out":
        outside.unlink()
    return how


def swapped(path: Path, chance: random.Random, others: list[Path]) -> str:
    """Replace a file by another file of the folder."""
    other = chance.choice([other for other in others if other != path])
    path.write_bytes(other.read_bytes())
    return f"is {other.name}"


def sign(folder: Path) -> None:
    """Update the manifest to the files beside it."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in manifest["files"]:
        path = folder / name
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26:
            manifest["files"][name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


# -- Commands ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command that reads a damaged folder."""

    name: str
    folder: str  # the damaged one
    arguments: Callable[[Path, Path], list[str]]  # from the work folder and a folder for pages
    main: Callable[[list[str]], int] = cli.main
    files: str = r".*"  # the files of the folder that it reads
    writes: bool = False  # into the folder


def _sweep_program(arguments: list[str]) -> int:
    from distvae.sweeps import __main__ as sweep

    return sweep.main(arguments)


def _table_program(arguments: list[str]) -> int:
    from distvae.table.__main__ import main

    return main(arguments)


_RESULTS = r"(results\.json|sentences\.parquet|vocabulary\.json|starts/.*)"
_RUN = rf"({_RESULTS}|config\.yaml|environment\.json|metrics\.jsonl|best/.*)"
_CHECKPOINT = r"(config\.yaml|results\.json|status\.json|metrics\.jsonl|starts/.*|checkpoints/.*|pretrained/.*|best/.*)"
_SWEEP = r"(sweep\.yaml|base\.yaml|sweep\.json|trials\.json|finalists/.*|trials/.*\.jsonl?|pretrained/.*\.jsonl)"


def _config(work: Path) -> str:
    return str(work.parent / "tiny.yaml")


_SENTENCE = "A man is sitting ."

COMMANDS = [
    Command("compare", "run", lambda w, _: ["compare", str(w / "run"), str(w / "other")], files=_RESULTS),
    Command("compare --json", "run", lambda w, _: ["compare", str(w / "run"), "--json"], files=_RESULTS),
    Command(
        "report", "run", lambda w, out: ["report", str(w / "run"), str(w / "other"), "--out", str(out)], files=_RUN
    ),
    Command(
        "report", "other", lambda w, out: ["report", str(w / "run"), str(w / "other"), "--out", str(out)], files=_RUN
    ),
    Command("sample", "export", lambda w, _: ["sample", str(w / "export"), "-n", "3"]),
    Command("sample --json", "export", lambda w, _: ["sample", str(w / "export"), "-n", "3", "--json"]),
    Command("interpolate", "export", lambda w, _: ["interpolate", str(w / "export"), "--steps", "3"]),
    Command("reconstruct", "export", lambda w, _: ["reconstruct", str(w / "export"), _SENTENCE]),
    Command("evaluate", "run", lambda w, _: ["evaluate", str(w / "run")], files=r"(best/.*|results\.json|starts/.*)"),
    Command("sweep-report", "sweep", lambda w, _: ["sweep-report", str(w / "sweep")], files=_SWEEP),
    Command("sweep-report", "population", lambda w, _: ["sweep-report", str(w / "population")], files=_SWEEP),
    Command(
        "sweep-report --json",
        "population",
        lambda w, _: ["sweep-report", str(w / "population"), "--json"],
        files=_SWEEP,
    ),
    Command(
        "sweep.py --dry-run",
        "sweep",
        lambda w, _: ["--resume", str(w / "sweep"), "--dry-run"],
        _sweep_program,
        files=r"(sweep|base)\.yaml",
    ),
    Command(
        "table.py --plan",
        "table",
        lambda w, _: ["--rows", str(w.parent / "rows"), "--folder", str(w / "table"), "--seeds", "0", "--plan"],
        _table_program,
        files=r".*/kla/(config\.yaml|results\.json|starts/.*|status\.json)",
    ),
    Command(
        "train.py, finished",
        "run",
        lambda w, _: [_config(w), f"run={w / 'run'}"],
        train.main,
        files=rf"({_RESULTS}|config\.yaml|status\.json)",
        writes=True,
    ),
    Command(
        "train.py, resume=never",
        "run",
        lambda w, _: [_config(w), f"run={w / 'run'}", "resume=never"],
        train.main,
        files=r"(config\.yaml|results\.json)",
    ),
    Command(
        "train.py, resume=auto",
        "stopped",
        lambda w, _: [_config(w), f"run={w / 'stopped'}"],
        train.main,
        files=_CHECKPOINT,
        writes=True,
    ),
    Command(
        "train.py, resume=FOLDER",
        "stopped",
        lambda w, out: [_config(w), f"run={out / 'new'}", f"resume={w / 'stopped' / 'checkpoints' / 'latest'}"],
        train.main,
        files=r"checkpoints/.*",
    ),
    Command(
        "train.py, pretrained=",
        "run",
        lambda w, out: [_config(w), f"run={out / 'new'}", f"pretrained={w / 'run'}", "train.max_epochs=1"],
        train.main,
        files=r"pretrained/.*",
    ),
]


@dataclass
class Answer:
    """The result of a command."""

    code: int | str
    out: str
    err: str
    pages: dict[str, str] = field(default_factory=dict)


@dataclass
class DamageOutcome:
    """A damage and its effect."""

    command: Command
    damage: str
    answer: Answer
    verdict: str = ""
    faults: list[str] = field(default_factory=list)


class FolderCampaign:
    """Damages copies of the nursery's folders in ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder
        nursery(folder)
        self.work = folder / "work"
        self.usual: dict[str, Answer] = {}
        # Import before the forks, once.
        import distvae.table.__main__  # noqa: F401
        from distvae.sweeps import __main__, plots  # noqa: F401

        gc.freeze()  # keeps these modules out of the commands' garbage collections

    def carry_out(self, seed: int, number: int) -> DamageOutcome:
        """Damage a folder and run a command on it."""
        chance = random.Random(f"{seed} {number}")
        command = COMMANDS[number % len(COMMANDS)]
        self._copy()
        if command.name + command.folder not in self.usual:
            usual = self.ask(command)
            assert usual.code in (0, 2), usual
            self.usual[command.name + command.folder] = usual
            self._copy()
        damage = self.damage(command, chance)
        before = self._trees(command)
        answer = self.ask(command)
        outcome = DamageOutcome(command, damage, answer)
        outcome.faults = self.judge(outcome, before)
        return outcome

    def _copy(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.folder / "whole", self.work, symlinks=True)
        for config in self.work.rglob("config.yaml"):
            if not config.is_symlink() and MANIFEST not in os.listdir(config.parent):
                _rewrite(config, str(self.folder / "whole"), str(self.work))
        (self.folder / "pages").mkdir(exist_ok=True)

    def damage(self, command: Command, chance: random.Random) -> str:
        target = self.work / command.folder
        names = [str(path.relative_to(target)) for path in sorted(target.rglob("*")) if path.is_file()]
        names = [name for name in names if re.fullmatch(command.files, name) and "latest/" not in name]
        path = target / chance.choice(names)
        kind = chance.choice(["structured"] * 6 + ["hostile"] * 3 + ["raw"] * 3 + ["special"] * 3 + ["swapped"])
        if kind == "swapped":
            what = swapped(path, chance, [target / name for name in names] + [self.folder / "tiny.yaml"])
        elif kind in ("structured", "hostile"):
            what = structured(path, chance, kind == "hostile")
        else:
            what = {"raw": raw, "special": special}[kind](path, chance)
        signed = kind != "special" and path.name != MANIFEST and (path.parent / MANIFEST).is_file()
        if signed and chance.random() < 0.7:
            sign(path.parent)
            what += ", signed"
        return f"{path.relative_to(target)}: {what}"

    def _trees(self, command: Command) -> dict[str, dict[str, str]]:
        pages = ("sweep.md", "sweep.html") if command.name.startswith("sweep-report") else ()
        found = {name: tree(self.work / name, pages) for name in os.listdir(self.work) if (self.work / name).is_dir()}
        if command.writes:
            del found[command.folder]
        found |= {name: tree(self.folder / name) for name in ("whole", "rows", "cache")}
        return found | {"files": {path.name: "" for path in self.work.iterdir()}}

    def ask(self, command: Command) -> Answer:
        """Run a command in a forked process."""
        pages = self.folder / "pages"
        shutil.rmtree(pages)
        pages.mkdir()
        told = self.folder / "answer.json"
        told.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                self._in_child(command, pages, told)
            finally:
                os._exit(0)
        end = time.monotonic() + PATIENCE
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Answer("hung", "", "")
            time.sleep(0.01)
        if not told.exists():
            return Answer("died", "", "")
        answer = Answer(**json.loads(told.read_text(encoding="utf-8")))
        written = [*pages.glob("*.md"), *pages.glob("*.html"), *(self.work / command.folder).glob("sweep.*")]
        for path in written:
            if path.suffix in (".md", ".html"):
                answer.pages[path.name] = path.read_text(encoding="utf-8")
        return answer

    def _in_child(self, command: Command, pages: Path, told: Path) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.chdir(self.folder)
        out, err, code = io.StringIO(), io.StringIO(), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = command.main(command.arguments(self.work, pages))
            except BaseException:
                code = "traceback"
                err.write(traceback.format_exc())
        content = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        told.write_text(json.dumps(content), encoding="utf-8")

    def judge(self, outcome: DamageOutcome, before: dict) -> list[str]:
        """Return what is wrong with an answer."""
        command, answer, faults = outcome.command, outcome.answer, []
        if answer.code not in (0, 2):
            return [f"{answer.code}: {answer.err.strip().splitlines()[-1] if answer.err.strip() else ''}"]
        usual = self.usual[command.name + command.folder]
        texts = {name: text for name, text in answer.pages.items() if name.endswith(".md")}
        for name, text in {"stdout": answer.out, "stderr": answer.err, **texts}.items():
            raw_lines = [line for line in text.split("\n") if printable(line) != line]
            faults += [f"{name} has {raw_lines[0]!r:.200}"] if raw_lines else []
        faults += [f"{name}: {what}" for name, text in answer.pages.items() for what in live(name, text)]
        lines = [line for line in answer.err.splitlines() if line.startswith("distvae: ")]
        if answer.code == 2:
            refusal = lines[-1] if lines else ""
            outcome.verdict = "refused"
            if usual.code == 0:
                if str(self.folder) not in refusal:
                    faults.append(f"the error does not name the folder: {answer.err[-300:]!r}")
                if len(refusal) > 2200 or answer.err.splitlines()[-1:] != [refusal]:
                    faults.append(f"the error is not one line: {answer.err[-300:]!r}")
        elif self._same(answer, usual):
            outcome.verdict = "no effect" if not lines else "reported and ignored"
        elif lines:
            outcome.verdict = "reported and ignored"
        elif OWN_TRUTH.search(f"{command.name}, {outcome.damage}") or "hostile" in outcome.damage:
            outcome.verdict = "shown, because no other file holds the value"
        elif ", signed" in outcome.damage:
            outcome.verdict = "shown, because the manifest vouches for it"
        else:
            faults.append("the answer differs from that of the undamaged folder")
        if command.name.endswith("--json") and answer.code == 0:
            try:
                json.loads(answer.out)
            except ValueError:
                faults.append("the output is not JSON")
        after = self._trees(command)
        for name in before.keys() | after.keys():
            old, new = before.get(name, {}), after.get(name, {})
            changed = [path for path in old.keys() | new.keys() if old.get(path) != new.get(path)]
            faults += [f"changed {name}/{path}" for path in changed[:3]]
        return faults

    def _same(self, answer: Answer, usual: Answer) -> bool:
        """Return whether two answers agree, apart from times."""

        def told(one: Answer) -> str:
            lines = [
                line for line in one.out.splitlines() if not line.startswith(("resuming from", "train ", "pretrain "))
            ]
            return (
                re.sub(r"\d+/s", "", "\n".join(lines)) + one.pages.get("report.md", "") + one.pages.get("sweep.md", "")
            )

        return told(answer) == told(usual)


# Where a sweep's report may link to: the run folder and the log of a trial.
_OWN = re.compile(r"trials/\d+(\.\d+)*/|logs/\d+\.log")


class _Live(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            leads = name in ("src", "href") and not (value or "").startswith("data:")
            if name.startswith("on") or (leads and not _OWN.fullmatch(value or "")):
                self.found.append(f"<{tag} {name}={value!r:.80}>")
        self.scripts += tag == "script"


def live(name: str, text: str) -> list[str]:
    """Return what loads, links or runs on a page, or on the page that Markdown renders to."""
    page = _Live()
    if name.endswith(".md"):
        text = re.sub(r"!\[(Figure 2|Learning curves)\]\((figure2|curves)\.svg\)", "", text)
        page.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
        if re.search(r"(?<!\()\b(https?|ftp)://|\bwww\.", text):
            page.found.append("an address that renders as a link")
    else:
        page.feed(text)
        if "alert(1)</script>" in text or "<script>alert" in text:
            page.found.append("a script")
    return page.found


# -- The program -------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.folders", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", type=int, help="run this damage alone, and print its output")
    parser.add_argument("--all", action="store_true", help="print every damage and the command's errors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="folders-") as folder:
        campaign = FolderCampaign(Path(folder).resolve())
        outcomes = []
        for number in range(options.count) if options.only is None else [options.only]:
            outcome = campaign.carry_out(options.seed, number)
            outcomes.append(outcome)
            if outcome.faults or options.all or options.only is not None:
                print(printable(f"{number}: {outcome.command.name} {outcome.command.folder}, {outcome.damage:.300}"))
                print(printable(f"    {outcome.verdict} {outcome.answer.err.replace(folder, '')[-400:]}"))
                print(*(f"    {fault}" for fault in outcome.faults), sep="\n", flush=True)
            if options.only is not None:
                print(printable(outcome.answer.out), outcome.answer.err, outcome.verdict, sep="\n")
    print(report(outcomes, options.seed, time.monotonic() - began))
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def report(outcomes: list[DamageOutcome], seed: int, seconds: float) -> str:
    """Return the counts."""
    verdicts = list(dict.fromkeys(outcome.verdict for outcome in outcomes if not outcome.faults))
    lines = [
        f"{len(outcomes)} damages, seed {seed}, {seconds:.0f} s: {sum(bool(o.faults) for o in outcomes)} with a fault"
    ]
    counts = collections.Counter(o.verdict if not o.faults else "fault" for o in outcomes)
    lines += [f"{count:4} {verdict}" for verdict, count in counts.most_common()]
    lines += ["", f"| command | {' | '.join(verdicts)} |", "| --- " + "| ---: " * len(verdicts) + "|"]
    for name in dict.fromkeys(command.name for command in COMMANDS):
        of = collections.Counter(o.verdict for o in outcomes if o.command.name == name and not o.faults)
        lines.append(f"| `{name}` | {' | '.join(str(of[verdict]) for verdict in verdicts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
