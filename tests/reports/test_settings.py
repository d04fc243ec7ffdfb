"""Settings as lines for a terminal."""

from distvae.config.reference import SECTION, Setting
from distvae.reports.settings import lines


def test_a_setting_is_what_to_type_and_what_it_means():
    found = [
        Setting("kl", SECTION, None, {}, "What sets γ.", ""),
        Setting(
            "kl.policy", "constant or linear", "linear", {"constant": "γ stays.", "linear": "γ rises."}, "Rule.", ""
        ),
        Setting("kl.steps", "whole number or null", None, {}, "Steps between two of its moves.", "kl.policy=linear"),
        Setting("kl.by", "epoch or step", "epoch", {"epoch": None, "step": None}, "When.", ""),
    ]
    assert list(lines(found, 40)) == [
        "",
        "kl: What sets γ.",
        "",
        "kl.policy=linear  (constant or linear)",
        "    Rule.",
        "      constant: γ stays.",
        "      linear: γ rises.",
        "kl.steps=null  (whole number or null;",
        "    read by kl.policy=linear)",
        "    Steps between two of its moves.",
        "kl.by=epoch  (epoch or step)",
        "    When.",
    ]
