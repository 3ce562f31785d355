"""HTML as a browser would read it, and the checks that every page and fragment has to pass."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

VOID = {"meta", "br"}
TAGS = re.compile(
    "html|head|meta|title|style|body|header|main|nav|section|article|div|span|p|b|i|br|em|small|h[1-4]|ul|li|a|dl|dt|dd|"
    "table|caption|thead|tbody|tr|th|td|data|code|pre|bdi|details|summary|figure|figcaption|svg|g|path|text|circle"
)
ATTRIBUTES = re.compile(
    "lang|charset|http-equiv|content|name|id|class|href|title|dir|role|tabindex|scope|open|value|style|"
    "aria-(label|labelledby|hidden)|viewbox|width|height|d|fill|stroke(-width|-dasharray)?|font-size|x|y|cx|cy|r|"
    "text-anchor|transform|preserveaspectratio"
)


@dataclasses.dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Element] = dataclasses.field(default_factory=list)

    def all(self, tag: str = "", css: str = "") -> list[Element]:
        """Elements below this one with that tag and that class, in document order."""
        found = []
        for child in self.children:
            if tag in ("", child.tag) and (not css or css in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(tag, css)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def _read(html: str) -> Element:
    """Parse, and check what holds of everything we write: balanced, no script, nothing from outside, no raw control."""
    html = str(html)  # Markup would escape what is read from it
    html.encode("utf-8")  # lone surrogates would not
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", html)
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root], f"left open: {[element.tag for element in reader.open]}"
    for element in reader.root.all():
        assert TAGS.fullmatch(element.tag), f"<{element.tag}>"
        for name, value in element.attributes.items():
            assert ATTRIBUTES.fullmatch(name), f"<{element.tag} {name}={value!r}>"
            if name == "href":
                assert value.startswith("#")
            if name == "style":
                assert re.fullmatch(r"[\w:#(),.; -]+", value) and "url" not in value
        if element.tag == "style":
            assert "url(" not in element.text and "@import" not in element.text
    return reader.root


@pytest.fixture(scope="session")
def read() -> Callable[[str], Element]:
    return _read


@pytest.fixture(scope="session")
def contrast() -> Callable[[str, str], float]:
    """WCAG 2 contrast ratio of two `#rrggbb` colours, 1 to 21; 4.5 is asked of normal text (AA), 3 of graphics."""

    def luminance(colour: str) -> float:
        channels = [c / 255 for c in bytes.fromhex(colour[1:])]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def ratio(first: str, second: str) -> float:
        lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    assert ratio("#000000", "#ffffff") == pytest.approx(21.0)
    assert ratio("#ffffff", "#767676") == pytest.approx(4.54, abs=0.005)  # the lightest grey that passes
    return ratio


HOSTILE = (
    "<script>alert(1)</script>",
    "</style></script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "<!-- --> <![CDATA[ ]]>",
    "&lt;b&gt; &amp; &#0;",
    "javascript:alert(1)",
    "https://evil.example/track.png",
    "\x00\x01\x1b[31m\x7f\x85",
    "\u202egnp.exe \u2066isolate",
    "\ud800 lone surrogate",
    "zero\u200bwidth\ufeff",
    "שלום مرحبا 早上好 👩‍👩‍👧 Z\u0351\u036b",
    "",
)


@pytest.fixture(scope="session")
def hostile() -> tuple[str, ...]:
    """Text that would do harm in a page that does not escape it."""
    return HOSTILE
