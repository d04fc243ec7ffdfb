"""Short names of config keys, values and times, as tables, plots and messages show them."""

from __future__ import annotations

from distvae.sweeps.space import Value

# The paper's letters for config keys.
LETTERS = {"kl.target_rate": "λ", "kl.threshold": "β", "kl.multiplier": "χ"}


def label(key: str) -> str:
    """Return a config key, after the paper's letter for it."""
    return f"{LETTERS[key]} {key}" if key in LETTERS else key


def format_value(value: Value) -> str:
    """Format a value of a search space, as YAML writes it; floats have four digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_values(values: dict[str, Value]) -> str:
    """Format the values of a trial: ``λ = 4, χ = 0.3``."""
    return ", ".join(f"{LETTERS.get(key, key)} = {format_value(value)}" for key, value in values.items())


def format_duration(seconds: float) -> str:
    """Format a time in its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def format_trials(numbers: list[int]) -> str:
    """Format trial numbers: ``trials 1, 4``. Lists 20 at most."""
    shown = ", ".join(map(str, numbers[:20])) + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")
    return f"trial{'' if len(numbers) == 1 else 's'} {shown}"
