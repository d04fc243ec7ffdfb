"""Short names of metrics and config keys in tables, plots and messages."""

from __future__ import annotations

from distvae.sweeps.space import Value

# Names of metrics.
NAMES = {
    "nll": "NLL",
    "ppl": "PPL",
    "neg_elbo": "−ELBO",
    "re": "RE",
    "kl": "KL",
    "mutual_information": "MI",
    "active_units": "AU",
}

# The paper's letters for keys.
LETTERS = {"kl.target_rate": "λ", "kl.threshold": "β", "kl.multiplier": "χ"}


def label(key: str) -> str:
    """A key of a training config, beside the paper's letter for it."""
    return f"{LETTERS[key]} {key}" if key in LETTERS else key


def format_value(value: Value) -> str:
    """A value of a space, in a few characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time in its two greatest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def trial_list(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:20])) + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")
    return f"trial{'' if len(numbers) == 1 else 's'} {shown}"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
