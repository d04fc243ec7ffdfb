"""``python -m tests.faults --kills 100 --seed 0``: kill runs, resume them, and compare how they end."""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.campaign import WAYS, Campaign, KillOutcome, chains


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="minimum number of kills (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws: what is killed, where, how and when")
    parser.add_argument("--report", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--folder", type=Path, help="of the runs; runs with a fault are kept there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    began, outcomes, number = time.monotonic(), [], 0

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {len(outcomes):3} kills  {line}", flush=True)

    with Campaign(folder, tell=tell) as campaign:
        for chain in chains(options.seed, WAYS):
            outcomes += campaign.carry_out(chain)
            number += 1
            if len(outcomes) >= options.kills:
                break
    text = report(outcomes, number, time.monotonic() - began, options.seed)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    well = all(outcome.equal and not outcome.faults for outcome in outcomes)
    if well:
        shutil.rmtree(folder)
    else:
        print(f"runs with a fault are kept in {folder}", file=sys.stderr)
    return 0 if well else 1


def report(outcomes: list[KillOutcome], runs: int, seconds: float, seed: int) -> str:
    """Return the tables."""
    faults = sum(bool(outcome.faults) for outcome in outcomes)
    head = (
        f"{len(outcomes)} kills in {runs} runs, seed {seed}, {seconds / 60:.0f} minutes:"
        f" {sum(o.resumed for o in outcomes)} resumed, {sum(o.equal for o in outcomes)} equal at the end,"
        f" {faults} with a fault right after the kill\n\n"
    )
    keys = {
        "kill": lambda o: o.kill.what,
        "place": lambda o: o.kill.place,
        "processes": lambda o: str(o.chain.way),
        "variant": lambda o: o.chain.variant,
        "started": lambda o: "by accelerate launch" if o.chain.launched else "forked",
    }
    parts = [table(outcomes, name, key) for name, key in keys.items()]
    all_keys = [keys[name] for name in ("kill", "place", "processes")]
    parts.append(table(outcomes, "kill | place | processes", lambda o: " | ".join(key(o) for key in all_keys)))
    return head + "\n".join(parts)


def table(outcomes: list[KillOutcome], name: str, key) -> str:
    groups = collections.defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome)].append(outcome)
    lines = [f"| {name} | kills | resumed | equal |", "| --- " * (name.count("|") + 1) + "| ---: | ---: | ---: |"]
    for value in sorted(groups):
        of = groups[value]
        lines.append(f"| {value} | {len(of)} | {sum(o.resumed for o in of)} | {sum(o.equal for o in of)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
