"""Checks of a built book that need only the standard library: `python tests/html_checks.py _build/html`.

Links and their fragments lead somewhere, nothing is loaded from another host, and every picture says in words
what it shows.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

# What a browser loads by itself, as opposed to what a reader may follow.
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
LOADING_RELS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "manifest"}


class Reference(NamedTuple):
    """One address on a page, with the element that holds it."""

    tag: str
    address: str
    loaded: bool  # True if a browser requests it without being asked


class Page(HTMLParser):
    """Collects the ids, the references and the pictures of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[Reference] = []
        self.pictures: list[dict[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "img":
            self.pictures.append(given)
        if tag in LOADED and given.get(LOADED[tag]):
            self.references.append(Reference(tag, given[LOADED[tag]], True))
        if tag == "link" and given.get("href"):
            loaded = bool(LOADING_RELS & set(given.get("rel", "").lower().split()))
            self.references.append(Reference(tag, given["href"], loaded))
        if tag == "a" and given.get("href"):
            self.references.append(Reference(tag, given["href"], False))


def read_pages(site: Path) -> dict[Path, Page]:
    """Return every page of a built book by its path."""
    found = sorted(path for path in site.resolve().rglob("*.html") if "_static" not in path.parts)
    return {path: Page(path.read_text(encoding="utf-8")) for path in found}


def broken_links(pages: dict[Path, Page]) -> list[str]:
    """Return a line for each reference inside the book whose file or fragment does not exist."""
    problems = []
    for path, page in pages.items():
        for reference in page.references:
            parts = urlsplit(reference.address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            fragment = unquote(parts.fragment)
            if not target.is_file():
                problems.append(f"{path.name}: {reference.address} does not exist")
            elif fragment and target in pages and fragment not in pages[target].ids:
                problems.append(f"{path.name}: {reference.address} has no such part")
    return problems


def foreign_requests(pages: dict[Path, Page], site: Path) -> list[str]:
    """Return a line for each script, style, picture or font that would be loaded from another host."""
    problems = []
    for path, page in pages.items():
        for reference in page.references:
            parts = urlsplit(reference.address)
            if reference.loaded and (parts.netloc or parts.scheme in ("http", "https")):
                problems.append(f"{path.name}: <{reference.tag}> loads {reference.address}")
    for style in sorted(site.rglob("*.css")):
        text = re.sub(r"/\*.*?\*/", "", style.read_text(encoding="utf-8"), flags=re.DOTALL)
        for address in re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s;]+)", text):
            problems.append(f"{style.name}: loads {address}")
    return problems


def pictures_without_words(pages: dict[Path, Page]) -> list[str]:
    """Return a line for each picture whose alternative text is missing, blank, or only a file name."""
    problems = []
    for path, page in pages.items():
        for picture in page.pictures:
            alt = picture.get("alt", "").strip()
            if not alt or alt.startswith("_images/") or re.fullmatch(r"\S+\.(png|svg|jpe?g|gif)", alt):
                problems.append(f"{path.name}: picture {picture.get('src', '?')} has no alternative text")
    return problems


def check_site(site: Path) -> list[str]:
    """Return every problem of a built book, one line each."""
    pages = read_pages(site)
    if not pages:
        return [f"{site} holds no page"]
    return broken_links(pages) + foreign_requests(pages, site) + pictures_without_words(pages)


if __name__ == "__main__":
    found = check_site(Path(sys.argv[1]))
    for problem in found:
        print(problem)
    if not found:
        print(f"{len(read_pages(Path(sys.argv[1])))} pages: links, offline reading and picture texts are right")
    sys.exit(1 if found else 0)
