from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from detkit.visualization import png_bytes, write_report

EVIL = "<script>alert('x')</script>\" onload=\"y & ]]> -->"
RESULTS = {"bbox": {"AP": 62.345, "AP50": 100.0, "APs": None, "per_class": {"cat": 12.34, "正方形": None}}}


class Page(HTMLParser):
    """Collects the tags with attributes and the text of a page, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""

    def names(self):
        return {tag for tag, _ in self.tags}


@pytest.fixture
def report(tmp_path):
    """Write a report and return its parsed page."""
    return lambda **given: Page(write_report(tmp_path, **{"title": "t", "results": {}, **given}).read_text("utf-8"))


def test_everything_given_is_shown(report, ground):
    page = report(
        title="quickstart / 3",
        subtitle="900 iterations",
        results=RESULTS,
        pictures=[("first batch", png_bytes(ground(5, 5)))],
        about_data=["train.json: 5 pictures", "  boxes dropped: <3>"],
        config_text="MODEL:\n  NAME: x\n",
        environment={"torch": "2.13"},
        next_steps=[("Train longer:", "python tools/train_net.py")],
    )
    for text in (
        "quickstart / 3", "900 iterations", "62.3", "100.0", "n/a", "APs", "cat", "12.3", "正方形", "first batch",
        "train.json: 5 pictures\n  boxes dropped: <3>",
        "MODEL:\n  NAME: x\n", "torch", "2.13", "Train longer:", "python tools/train_net.py",
    ):  # fmt: skip
        assert text in page.text
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources] == [
        png_bytes(ground(5, 5))
    ]


def test_every_text_is_escaped(report):
    page = report(
        title=EVIL,
        subtitle=EVIL,
        results={EVIL: {EVIL: 1.0, "per_class": {EVIL: 2.0}}},
        pictures=[(EVIL, b"")],
        config_text=EVIL,
        environment={EVIL: EVIL},
        next_steps=[(EVIL, EVIL)],
    )
    assert page.text.count(EVIL) == 12  # title is there twice
    assert "script" not in page.names()
    assert {name for _, attrs in page.tags for name in attrs} <= {
        "lang",
        "charset",
        "name",
        "content",
        "class",
        "style",
        "alt",
        "src",
    }


def test_the_page_stands_alone(report, tmp_path, ground):
    report(results=RESULTS, pictures=[("a", png_bytes(ground(3, 3)))], config_text="a: 1")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"https?:|//|@import|url\(|<script|<link|<iframe", re.sub(r"base64,[^\"]*", "", text))
    assert "charset" in text


def test_without_pictures_and_all_else(report):
    page = report(title="bare")
    assert "Nothing was measured" in page.text
    assert "img" not in page.names()
    assert not {"Pictures", "How to go on", "Configuration", "Environment"} & set(re.findall(r"\w[\w ]+", page.text))


def test_a_bar_is_as_long_as_the_value(report):
    page = report(results={"bbox": {"AP": 1.0, "per_class": {"a": 0.0, "b": 37.0, "c": 100.0, "d": None}}})
    widths = [attrs["style"] for tag, attrs in page.tags if tag == "em"]
    assert widths == ["width:0.0%", "width:37.0%", "width:100.0%", "width:0.0%"]


def test_written_over(report):
    report(title="first")
    assert "first" not in report(title="second").text
