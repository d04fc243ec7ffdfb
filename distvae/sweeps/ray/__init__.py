"""Sweeps by Ray Tune: the only package that imports Ray.

``driver.py`` runs a sweep, ``search.py`` has what Tune chooses by, ``trial.py`` what runs in Ray's processes. What a
sweep is, and how trials are judged, stands in ``distvae/sweep.py``.
"""

import os

# Before Ray is imported, which reads some of them then; in the driver and in its trials' processes.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ |= {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in configs count from where the sweep was started
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs keep their own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "20",
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    "TUNE_MAX_PENDING_TRIALS_PG": "4",
}
