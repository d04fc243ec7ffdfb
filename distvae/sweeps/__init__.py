"""Hyperparameter sweeps: their specification, ranking, storage and reports. Only ``sweeps.ray`` imports Ray."""

# How to install the packages that only sweeps need, for error messages.
INSTALL = "install distvae with its extra `sweep`, for example by pip install -e '.[sweep]' in a checkout"
