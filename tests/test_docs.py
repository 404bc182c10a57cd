"""Every relative link between the documents leads somewhere, heading included. No network is used."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
NOT_OURS = {".venv", ".git", "out", "node_modules", "build", "dist"}

# [text](target), [text](target "title"), and [name]: target at the start of a line.
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*<?([^\s>]+)>?", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def documents() -> list[Path]:
    """Every Markdown file of the repository."""
    found = (path for path in ROOT.rglob("*.md") if not NOT_OURS & set(path.relative_to(ROOT).parts[:-1]))
    return sorted(found)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, made as GitHub makes them; a repeated one gets -1, then -2."""
    found: set[str] = set()
    for heading in HEADING.findall(re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)):
        base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchor, again = base, 0
        while anchor in found:
            again += 1
            anchor = f"{base}-{again}"
        found.add(anchor)
    return found


def broken_links(document: Path) -> list[str]:
    """The relative links of a document that lead nowhere."""
    broken = []
    for inline, reference in LINK.findall(CODE.sub("", document.read_text())):
        target = inline or reference
        if re.match(r"[a-z][a-z0-9+.-]*:", target):  # another site, or mailto
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / unquote(path)).resolve() if path else document
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
            broken.append(f"{target}: no such heading")
    return broken


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_the_documents_are_found() -> None:
    assert ROOT / "CHANGELOG.md" in documents()


def test_a_planted_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other file.md").write_text("# One `two`\n\n## Same\n\n## Same\n```\n# not a heading\n```\n")
    document = tmp_path / "page.md"
    document.write_text(
        "# Top\n[ok](other%20file.md) [ok](other%20file.md#one-two) [ok](other%20file.md#same-1) [ok](#top)\n"
        '[web](https://example.org/x) [folder](.) [titled](page.md "a title") `[code](nowhere.md)`\n'
        "```\n[code](nowhere.md)\n```\n"
        "[bad](gone.md) [bad](#nothing) [bad](other%20file.md#not-a-heading) [bad][ref]\n\n[ref]: lost.md\n"
    )
    assert broken_links(document) == [
        "gone.md: no such file",
        "#nothing: no such heading",
        "other%20file.md#not-a-heading: no such heading",
        "lost.md: no such file",
    ]
