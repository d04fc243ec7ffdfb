"""The training program: ``distvae train CONFIG [key=value …]``, the same as ``python distvae/train.py``.

Start several processes with ``accelerate launch distvae/train.py …``. ``train`` is the same as a function, and
``distvae/training/`` has the trainer.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # The imports take seconds and there is nothing to save yet: let Ctrl-C end the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A script's folder comes first on the import path, where our `config` and `data` would hide others of such names.
    sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from distvae import __version__
from distvae.config.keys import flatten, keys_with, known_keys
from distvae.config.load import load_config, with_precision
from distvae.config.schema import Config, DataConfig
from distvae.config.yaml import ConfigError
from distvae.system import launcher
from distvae.system.arguments import Parser
from distvae.system.errors import UserError, printable
from distvae.system.programs import run_program
from distvae.system.roles import Role
from distvae.system.signals import InterruptedRun, Signals

# PyTorch and the trainer take seconds to import: a wrong setting needs none of it, and a right one gets a line before.
if TYPE_CHECKING:
    from distvae.distributed.runtime import Runtime
    from distvae.runs.results import Results
    from distvae.runs.resume import Opening
    from distvae.training.caller import Caller

# Keys in which the processes of a run may differ.
_PER_PROCESS = keys_with(Config, Role.PER_PROCESS)


def main(arguments: list[str] | None = None) -> int:
    """Run the program.

    Returns:
        The exit code: 0 if the run has finished; 2 on a user error, which is printed in one line; 75 if the run was
        interrupted and can resume; 130 if it was told to end at once.
    """
    signals = Signals()
    hint = "smaller sizes in model or optimizer.batch_size need less"
    return run_program(lambda: _run(arguments, signals), signals=signals, hint=hint)


def _run(arguments: list[str] | None, signals: Signals) -> int:
    parser = Parser(prog="distvae train", description="Train an LSTM-VAE of sentences.", settings=known_keys(Config))
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/demo/pt_kla_sfb.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as kl.target_rate=6 run=runs/six"
    )
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        if error.run is not None:
            from distvae.runs import status
            from distvae.runs.folder import holds_run

            with contextlib.suppress(OSError, UserError):  # `run` may be what is wrong
                if not holds_run(Path(error.run)):
                    status.write_status(Path(error.run), "failed", str(error))
        raise
    launcher.check()
    if launcher.is_main():
        print(printable(f"{config.run}: starting {options.config}, distvae {__version__}"), flush=True)
    train(config, signals)
    return 0


def train(config: Config, signals: Signals | None = None, caller: Caller | None = None) -> Results:
    """Train and evaluate a config. Every process of the run calls this.

    Args:
        signals: may ask the run to stop.
        caller: what the calling program asks of the run.

    Raises:
        UserError: bad input, or numbers that are no longer finite; ``status.json`` has the reason.
        InterruptedRun: a signal asked to stop; the run is saved.
    """
    from distvae.distributed.runtime import Runtime
    from distvae.training.caller import Caller

    signals = signals or Signals()
    runtime = Runtime(config.engine_settings, config.communication, config.cpu_threads, config.speed.keep_memory)
    config = with_precision(config, runtime.mixed_precision)
    try:
        if runtime.world_size > 1:
            runtime.agree(_agreed(config))
        if config.run is None:
            raise UserError("a run needs a folder: name it by run=FOLDER")
        results = carry_out(config, Path(config.run), runtime, signals, caller or Caller())
    except (UserError, InterruptedRun):
        runtime.close()
        raise
    # After any other error the other ranks may be waiting in a collective: only the end of this process stops them.
    runtime.close()
    return results


def _agreed(config: Config) -> dict[str, Any]:
    """Return the values that must be the same on all ranks, by name."""
    from distvae.runs.environment import code_digest

    settings = {key: value for key, value in flatten(config) if key not in _PER_PROCESS}
    return {"distvae.__version__": __version__, "the code's SHA-256": code_digest()} | settings


def carry_out(config: Config, run: Path, runtime: Runtime, signals: Signals, caller: Caller) -> Results:
    """Train and score, unless the run has already finished."""
    from distvae.data.sources import STANDARD_INPUT
    from distvae.reports import comparison
    from distvae.runs.attempts import Attempt
    from distvae.runs.results import Results
    from distvae.runs.resume import Opening, open_run, pinned
    from distvae.runs.trackers.libraries import require_packages
    from distvae.training.trainer import Trainer
    from distvae.training.writer import NoWriter, RunWriter

    def begin() -> tuple[DataConfig, Opening]:
        require_packages(config.tracking.trackers)
        data = pinned(config, run)
        fixed = replace(config, data=data)
        return data, open_run(fixed, run, runtime.processes, caller.may_change, caller.overtakes)

    data, opening = runtime.on_main(begin)
    path = data.path if config.data.path == STANDARD_INPUT else config.data.path  # machines may have own paths
    config = replace(config, data=replace(config.data, path=path, revision=data.revision))
    match opening:
        case Opening(results=Results() as results):
            pass
        case Opening(attempt=Attempt() as attempt, checkpoint=checkpoint):
            writer = RunWriter(run, config, attempt, caller.group) if runtime.is_main else NoWriter()
            if runtime.is_main and runtime.heartbeat is not None:
                runtime.heartbeat.on_loss = lambda reason: writer.fail(UserError(reason))
            try:
                with signals.kept():
                    trainer = Trainer(config, run, runtime, attempt.number, checkpoint, signals, writer, caller)
                with signals.deferred():
                    trainer.run_stages()
                    results = trainer.finish()
            except BaseException as error:
                writer.fail(error)
                raise
            finally:
                writer.release()
    if runtime.is_main:
        comparison.show({run.name: results})
    return results


if __name__ == "__main__":
    sys.exit(main())
