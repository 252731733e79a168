"""Text within Markdown, shown as the letters that it has, by CommonMark and GitHub's extensions alike."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

# All that can begin or end something else than text, in a paragraph, a heading or a table's cell: as numbers, which are
# read after all of that. An underscore within a word is none of it; a full stop before a letter can be an address's.
MARKUP = re.compile(
    r"[#$&*:<>@\[\\\]^`{|}~]|[^\S \n]|(?:^|(?<=\s)) | $|\+(?=\+)|(?<=\+)\+|=(?==)|(?<==)=|"
    r"(?<![^\W_])_|_(?![^\W_])|\.(?=[^\W\d_])"
)


def plain(text: str) -> str:
    """A text for a heading or a table's cell. Line ends become <br>, characters that cannot be shown their codes."""
    shown = "".join(map(_visible, "\n".join(re.split("\r\n|\r|\n", text))))
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", shown).replace("\n", "<br>")


def quoted(text: str) -> str:
    """The same as code: within it GitHub makes no smileys, names or formulas of a text either."""
    return f"<code>{plain(text)}</code>" if text else ""


def _visible(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in ("Cc", "Cs"):
        return character
    return "\t" if character == "\t" else character.encode("unicode_escape").decode()


def block(lines: Iterable[str]) -> str:
    """Lines of code."""
    code = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}\n{code}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown: `plain` or `quoted` where they hold somebody else's text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
