"""Runs sweeps with Ray Tune. This is the only package that imports Ray.

Modules of the process that runs the sweep:

- ``driver``: the whole sweep, from its folder to its report; ``state``: its records and times
- ``scratch``, ``cluster``, ``placement``: the temporary folder, Ray, and the resources of trials
- ``pretraining``, ``tuning``, ``finalists``: the three stages; ``tuning`` uses ``search`` and ``tune_files``
- ``signals``, ``console``: signals received, lines printed

Modules of the processes that Ray starts: ``trial``, ``trial_runs``, ``trial_metrics``, ``workers``, ``stop_file``.
"""

import os

# Set before Ray is imported, in the driver and in the processes of trials, because Ray reads some of them on import.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
# Trials run at the priority of the command. With Ray's own 15 they would hardly run beside anything else.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ |= {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in configs are relative to where the sweep was started
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs write their own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "20",
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    "TUNE_MAX_PENDING_TRIALS_PG": "4",
}
