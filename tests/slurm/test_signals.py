"""slurm/signals.sh."""

import sys

import pytest

from tests.slurm.scripts import bash

BLOCKS = "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIG{}}}); print(); time.sleep(60)"

CATCHES = "import signal, time; signal.signal(signal.SIGTERM, print); print(); time.sleep(60)"


@pytest.mark.parametrize(
    ("process", "takes"),
    [
        (f"exec {sys.executable} -uc 'print(); import time; time.sleep(60)'", False),
        (f"exec {sys.executable} -uc '{CATCHES}'", True),
        ("exec bash -c 'trap : TERM; sleep 60 & echo; wait'", True),
        (f"exec {sys.executable} -uc '{BLOCKS.format('TERM')}'", True),
        # The signals that a shell blocks while it starts a program; then a fork of the shell that still has its traps.
        (f"exec {sys.executable} -uc '{BLOCKS.format('TERM, signal.SIGCHLD')}'", False),
        ("trap : TERM; sleep 60 & echo; wait", False),
    ],
)
def test_a_signal_is_for_what_handles_it(checkout, process, takes):
    script = f"""
        . slurm/signals.sh
        coproc {{ {process}; }}
        read -ru "${{COPROC[0]}}"
        if takes "$COPROC_PID" "$(kill -l TERM)"; then echo True; else echo False; fi
        kill -KILL $(below "$COPROC_PID")
    """
    assert bash("-c", script, cwd=checkout).stdout == f"{takes}\n"
