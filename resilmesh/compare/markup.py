"""HTML and SVG whose text is always escaped: a string becomes text, and only what ``element`` made is markup."""

from __future__ import annotations

import html
import unicodedata

#: Elements that have no end tag in HTML.
_VOID = frozenset({"br", "hr", "meta"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Attribute = str | int | float | bool | None


def element(tag: str, *children: object, **attributes: Attribute) -> Markup:
    """One element. ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None and False leave an attribute out."""
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(_clean(_short(value)))}"')
        for name, value in attributes.items() if value is not None and value is not False
    )
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """``children`` one after the other; None is nothing."""
    return Markup("".join(each if isinstance(each, Markup) else html.escape(_clean(str(each))) for each in children if each is not None))


def _clean(text: str) -> str:
    """Without control characters, which HTML does not allow, and without those that turn the direction of what follows."""
    if text.isprintable():
        return text
    return "".join(each if each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cf", "Cs") else "\ufffd" for each in text)


def _short(value: Attribute) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
