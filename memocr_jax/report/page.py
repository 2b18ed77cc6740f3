"""A report as one HTML file, pictures and all, that a person can open anywhere and without a network.

Everything that comes from a run is untrusted: a model may write anything. The template escapes all of it,
pictures must be PNG files inside the run's folders, and the page's own policy forbids every request and every
script but the one it carries.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from memocr_jax.report.questions import KINDS
from memocr_jax.report.values import finite, short, text

UNSAFE_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters and lone surrogates: no HTML document may hold them."""
CONTENTS = ("story", "charts", "scores", "groups", "entries", "config_text")
"""Optional contents of a page; None leaves the section out."""


def render_page(text_chars: int, **contents: Any) -> str:
    """The HTML of a page.

    Args:
        text_chars: a longer text loses its middle, and says so.
        contents: title, kind, sentence, notes and facts, and what its sections show.
    """
    assets = resources.files("memocr_jax.report") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        _environment(text_chars)
        .get_template("report.html")
        .render(
            {**dict.fromkeys(CONTENTS), **contents},
            kinds=KINDS,
            written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment(text_chars: int) -> jinja2.Environment:
    """Templates with escaping always on, and the few filters they use."""

    def clean(value: Any) -> str:
        return UNSAFE_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text(value))

    def clip(value: Any) -> str:
        """Text without its middle when it is too long; it is shown as text, never as markup."""
        whole, keep = clean(value), text_chars // 2
        if len(whole) <= 2 * keep:
            return whole
        return f"{whole[:keep]}\n\n[… {len(whole) - 2 * keep:,} characters left out …]\n\n{whole[-keep:]}"

    def lines(turn: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[tuple[str, bool]]:
        """(line, whether it is new) of a draft; no line is marked where all are new."""
        shown = clip(turn["response"]).splitlines(keepends=True)
        known = set(clean(before["response"]).splitlines()) if before else set()
        new = [bool(line.strip()) and line.rstrip("\n") not in known for line in shown]
        some_stay = any(line.strip() and not is_new for line, is_new in zip(shown, new, strict=True))
        return [(line, is_new and some_stay) for line, is_new in zip(shown, new, strict=True)]

    def signed(value: Any) -> str:
        number = finite(value)
        return "–" if number is None else ("+" if number > 0 else "") + short(number).replace("-", "−")

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memocr_jax.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    environment.filters.update(
        clip=clip,
        lines=lines,
        signed=signed,
        short=lambda value: short(finite(value)),
    )
    return environment
