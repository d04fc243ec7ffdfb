"""Text of a file is shown as text: by terminals, in JSON, in Markdown and on pages, whatever it holds."""

import html
import json
import re

import markdown
import pytest
from markdown_it import MarkdownIt

from distvae.system.errors import UserError, printable
from distvae.system.files import as_json
from distvae.system.markdown import escaped, markdown_table

NATURAL = [
    "A man is here .",
    "Ça coûte 5 € – « très » cher !",
    "שלום עולם",
    "مرحبا ۱۲ ، عالم",
    "می\u200cخواهم",  # Persian, with a non-joiner
    "क्\u200dष श्री\u200cमान",
    "👩\u200d👩\u200d👧 👍🏽 ❤\ufe0f 🇫🇷 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\U0001fae9 \U0001faea",  # emoji that may be newer than this Python
    "一個男人\u3000在這裡。 ทดสอบ",
    "\u0600\u0661\u0662 ᠠ\u180eᠡ e\u0301 a\u00a0b",
]
HOSTILE = {
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "a\rb\nc\td\x08e\x7f": "a\\rb\\nc\\td\\x08e\\x7f",
    "\x9b2J\x85": "\\x9b2J\\x85",
    "\u202eevil\u202c \u2066x\u2069 \u200e\u200f\u061c": "\\u202eevil\\u202c \\u2066x\\u2069 \\u200e\\u200f\\u061c",
    "a\u200bb\u2060c\ufeffd\u00ade": "a\\u200bb\\u2060c\\ufeffd\\xade",
    "\u2028\u2029\ufff9\U000e0001\udcff\uffff": "\\u2028\\u2029\\ufff9\\U000e0001\\udcff\\uffff",
}


@pytest.mark.parametrize("text", NATURAL)
def test_natural_text_is_shown_as_it_is(text):
    assert printable(text) == text
    assert str(UserError(text)) == text
    assert json.loads(as_json([text])) == [text]
    assert text in as_json([text])


@pytest.mark.parametrize("text", HOSTILE)
def test_what_would_change_a_terminal_is_written_as_an_escape(text):
    assert printable(text) == HOSTILE[text]
    assert str(UserError(text)) == HOSTILE[text]
    written = as_json([text]).replace("\n", "")
    assert printable(written) == written
    assert json.loads(written) == [text]


MARKUP = [
    "![x](http://evil/x.png)",
    "[x](javascript:alert(1)) [x]: http://evil [x][y] [^1]",
    "<img src=x onerror=alert(1)> <b> </td> <!-- x --> <http://evil> &lt;b&gt; &#91;x](http://evil)",
    "https://evil.example www.evil.example WWW.EVIL.example ftp://evil mail@evil.example",
    "*a* **b** _c_ __d__ ~~e~~ `f` $g$ kl.target_rate x_y_z",
    "| a | b \\| c \\",
    *("# a", "#a", "> a", "- a", "+ a", "* a", "1. a", "1) a", "---", "===", "***", "```", "~~~", "    a", "-", "1."),
    "-5.2 nats, 3.14 ± 0.1, +3 and (a) {b}",
    "\x1b[31m \u202e ![x](y)",
    *NATURAL,
]
RENDERERS = {
    # GitHub's tables and strikethrough, with raw HTML passed through.
    "CommonMark": MarkdownIt("commonmark").enable(["table", "strikethrough"]).render,
    # TensorBoard's.
    "Python-Markdown": lambda text: markdown.markdown(text, extensions=["markdown.extensions.tables"]),
}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("text", MARKUP)
def test_markdown_shows_text_as_it_is(text, renderer):
    shown = " ".join(map(printable, text.split()))
    for before, tags in (("", {"p"}), ("- ", {"ul", "li"})):
        page = RENDERERS[renderer](before + escaped(text))
        assert set(re.findall(r"<(\w+)", page)) == tags
        words = html.unescape(re.sub(r"</?(?:p|ul|li)>", "", page)).replace("\u200b", "")
        assert words.split() == shown.split()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_table_has_the_cells_it_was_given(renderer):
    page = RENDERERS[renderer](markdown_table(["a", "b"], [[text, str(i)] for i, text in enumerate(MARKUP)]))
    cells = [html.unescape(cell).replace("\u200b", "").strip() for cell in re.findall(r"<td>(.*?)</td>", page)]
    assert cells[::2] == [" ".join(map(printable, text.split())) for text in MARKUP]
    assert cells[1::2] == [*map(str, range(len(MARKUP)))]
    assert set(re.findall(r"<(\w+)", page)) == {"table", "thead", "tbody", "tr", "th", "td"}


def test_no_link_makes_itself():
    """GitHub makes links of bare addresses, which the renderers here do not."""
    text = escaped("https://evil.example www.evil.example mail@evil.example")
    assert not re.search(r"://|www\.|@\w", text)
