"""Keeps Markdown from losing text: what its rules or a browser would swallow is shown as text.

A memory is prose in which angle brackets, tildes and square brackets mean what their writer meant, not what
CommonMark and HTML take them for. `guard` and `unguard` stand before and after the parser: they put
characters that no memory has (`clean_text` replaces them) where a rule would take text away. `show_tags`
turns tags in the parser's output that are no markup into text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Set

_TILDE, _MARK = "\ufdd0", "\ufdd1"
_SINGLE_TILDE = re.compile(r"(?<![~\\])~(?!~)")
_FENCE = re.compile(r"^[\s>]*(?:`{3,}|~{3,})")
_NUMBERED = re.compile(r"^([ \t>]*)(\d{1,9})([.)])(?=[ \t]|$)", re.M)
_DELIMITERS = re.compile(r"^[\s>]*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_CELL_END = re.compile(r"(?<!\\)\|")

_TAG = re.compile(
    r"<(?P<close>/?)(?P<name>[a-zA-Z][a-zA-Z0-9-]*)"
    r"(?P<attributes>(?:\s+[a-zA-Z_:][\w:.-]*(?:\s*=\s*(?:[^\s\"'=<>`]+|'[^']*'|\"[^\"]*\"))?)*)\s*(?P<end>/?)>|<"
)
_ATTRIBUTE = re.compile(r"([a-zA-Z_:][\w:.-]*)(\s*=\s*(?:[^\s\"'=<>`]+|'[^']*'|\"[^\"]*\"))?")
_WITHOUT_VALUE = frozenset({"open", "reversed", "nowrap", "compact", "noshade", "hidden"})
_VOID = frozenset({"br", "hr", "wbr", "col"})
# Elements whose end tag HTML lets one leave out.
_ENDLESS = _VOID | {"p", "li", "dt", "dd", "td", "th", "tr", "thead", "tbody", "tfoot", "caption", "colgroup"}
_ENDLESS |= {"rt", "rp"}
_LINK = re.compile(r'<a href="([^"]*)"(?: title="[^"]*")?>(.*?)</a>', re.S)
# The parser writes these two attributes in either order.
_INFO = re.compile(r'<pre><code (?=[^<>]*class="language-([^"]*)")(?=[^<>]*data-meta="([^"]*)")[^<>]*>')


def guard(text: str) -> str:
    """Markdown that no rule takes text from: a single `~` strikes nothing out, `[1]: Smith` defines no link,
    a list has the numbers that were written, and a table as many columns as its longest row. Undone by
    `unguard`."""
    text = _SINGLE_TILDE.sub(_TILDE, text).replace("]:", f"]{_MARK}:")
    if _NUMBERED.search(text):
        text = _own_numbers(text)
    return _wide_tables(text) if "|" in text and "-" in text else text


def unguard(text: str) -> str:
    """The parser's output without the characters that `guard` put in."""
    return text.replace(_TILDE, "~").replace(_MARK, "")


def _own_numbers(text: str) -> str:
    """Lists that have the numbers that were written: HTML counts by itself, so a new list begins at a jump.

    CommonMark begins one where the sign behind the number changes (`5)` after `1.`); the sign is not drawn.
    A list of nothing but `1.` is meant to be counted.
    """
    lines = text.split("\n")
    fenced = False
    before: dict[str, tuple[int, str, str]] = {}  # by indentation: number, sign as written, sign as parsed
    for i, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        item = _NUMBERED.match(line)
        above = lines[i - 1] if i else ""
        # Below a line of a paragraph, a number at the start of the next one is a part of it.
        if fenced or not item or (above[:1].strip() and not _NUMBERED.match(above)):
            continue
        indent, number, sign = item[1], int(item[2]), item[3]
        parsed = sign
        if indent in before:
            last, written, parsed = before[indent]
            if sign != written or not (number == last + 1 or number == last == 1):
                parsed = ")" if parsed == "." else "."
        before[indent] = number, sign, parsed
        lines[i] = f"{line[: item.end() - 1]}{parsed}{line[item.end() :]}"
    return "\n".join(lines)


def _wide_tables(text: str) -> str:
    lines = text.split("\n")
    fenced = False
    for i, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        if fenced or not i or "|" not in lines[i - 1] or not _DELIMITERS.match(line):
            continue
        cells = _cells(line)
        if cells != _cells(lines[i - 1]):
            continue
        longest = i
        most = cells
        while longest + 1 < len(lines) and lines[longest + 1].strip(" \t>"):
            longest += 1
            most = max(most, _cells(lines[longest]))
        if most > cells:
            lines[i - 1] = lines[i - 1].rstrip().removesuffix("|") + f"|{_MARK}" * (most - cells) + "|"
            lines[i] = line.rstrip().removesuffix("|") + "|-" * (most - cells) + "|"
    return "\n".join(lines)


def _cells(row: str) -> int:
    row = row.strip(" \t>").removeprefix("|")
    ends = [found.end() for found in _CELL_END.finditer(row)]
    return len(ends) + (not ends or ends[-1] < len(row))


def show_tags(fragment: str, elements: Set[str]) -> str:
    """HTML of Markdown in which a `<` that opens no tag of these elements is text.

    A tag is markup when it is on the list, its attributes have values and, unless HTML can do without it, the
    other tag of its pair is there: so `List<String>`, `a<b and c>d` and `Set<A>` stay. Comments go; one that
    does not end is text.
    """
    fragment = _without_comments(fragment)
    found = list(_TAG.finditer(fragment))
    markup = [_is_markup(tag, elements) for tag in found]
    opened: dict[str, list[int]] = defaultdict(list)
    for i, tag in enumerate(found):
        if not markup[i] or (name := tag["name"].lower()) in _ENDLESS:
            continue
        if not tag["close"]:
            opened[name].append(i)
        elif opened[name]:
            opened[name].pop()
        else:
            markup[i] = False
    for left in opened.values():
        for i in left:
            # A tag with a style is meant as markup, even if the memory was cut off before the end tag.
            markup[i] = bool(found[i]["attributes"].strip())
    parts, at = [], 0
    for tag, is_tag in zip(found, markup, strict=True):
        if not is_tag:
            parts += [fragment[at : tag.start()], "&lt;"]
            at = tag.start() + 1
    return "".join(parts) + fragment[at:]


def _is_markup(tag: re.Match[str], elements: Set[str]) -> bool:
    if not tag["name"] or (name := tag["name"].lower()) not in elements:
        return False
    if tag["end"] and name not in _VOID:
        return False
    attributes = _ATTRIBUTE.findall(tag["attributes"])
    return all(value or attribute.lower() in _WITHOUT_VALUE for attribute, value in attributes)


def _without_comments(fragment: str) -> str:
    parts, at = [], 0
    while (start := fragment.find("<!--", at)) >= 0 and (end := fragment.find("-->", start + 2)) >= 0:
        parts.append(fragment[at:start])
        at = end + 3
    return "".join(parts) + fragment[at:]


def show_destinations(fragment: str) -> str:
    """The parser's output with what `values[i](x)` and a fence's line say beside their markup."""
    fragment = _INFO.sub(r"<pre><code>\1 \2\n", fragment)
    return _LINK.sub(lambda link: link[0] if _is_address(link[1]) else f"[{link[2]}]({link[1]})", fragment)


def _is_address(destination: str) -> bool:
    return not destination or any(mark in destination for mark in "/.#:@?")
