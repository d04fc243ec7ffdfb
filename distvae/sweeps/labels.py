"""Short names of metrics and config keys in tables, plots and messages."""

from __future__ import annotations

# How reports call them.
NAMES = {
    "nll": "NLL",
    "ppl": "PPL",
    "neg_elbo": "−ELBO",
    "re": "RE",
    "kl": "KL",
    "mutual_information": "MI",
    "active_units": "AU",
}
