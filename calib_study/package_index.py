"""Download a file from the package index that pip is configured with, continuing what a broken one left."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import requests
from pypi_simple import PYPI_SIMPLE_ENDPOINT, NoSuchProjectError, PyPISimple

from calib_study.catalogue import Archive
from calib_study.errors import DataError
from calib_study.progress import bar

TIMEOUT_SECONDS = (10.0, 60.0)  # to connect; to wait for the next bytes
CHUNK_BYTES = 1 << 16  # small, since a broken connection loses the chunk that it was reading
OTHER_WAY = (
    "Run the command again to continue. On a machine without network: calib-study fetch --from DIR, where "
    "DIR holds the files that another machine has fetched (its data/cache/archives)."
)


def pip_settings() -> dict[str, str]:
    """Return pip's own settings from its files and the environment, such as {"index-url": ..., "cert": ...}.

    Stronger ones win: environment variables over a section for one pip command over the global section.
    An empty dict if there is no pip here.
    """
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, "download": {}, ":env:": {}}
    run = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    for line in run.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in found:
            found[section][option] = str(ast.literal_eval(value))
    environment = {"index-url": os.environ.get("PIP_INDEX_URL"), "cert": os.environ.get("PIP_CERT")}
    return {
        **found["global"],
        **found["install"],
        **found["download"],
        **found[":env:"],
        **{option: value for option, value in environment.items() if value},
    }


class PackageIndex:
    """A package index and one session with it. Use as a context manager."""

    def __init__(self, endpoint: str | None = None, certificates: str | None = None) -> None:
        """Choose the address of the index's simple API and a file of CA certificates; pip's by default."""
        settings = pip_settings() if endpoint is None else {}
        self.endpoint = endpoint or settings.get("index-url", PYPI_SIMPLE_ENDPOINT)
        self._session = requests.Session()
        self._session.verify = certificates or settings.get("cert") or True
        self._index = PyPISimple(self.endpoint, session=self._session)

    def __enter__(self) -> "PackageIndex":
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.close()

    def __str__(self) -> str:
        """The index by its host, since its address may hold a password."""
        return f"the package index at {urlsplit(self.endpoint).hostname}"

    def download(self, archive: Archive, part: Path) -> None:
        """Write the archive to `part`, continuing from the bytes that are there. The caller checks the hash.

        A connection that breaks is taken up again for as long as each attempt brings something.
        Raises DataError if the index cannot be reached, does not have the file, or stops sending; OSError if
        `part` cannot be written.
        """
        while True:
            before = _bytes_in(part)
            try:
                self._receive(self._locate(archive), archive, part)
                return
            except requests.RequestException as error:
                if _bytes_in(part) <= before:
                    reason = re.sub(r"//[^/@\s]+@", "//", f"{type(error).__name__}: {error}")[:300]
                    raise DataError(f"cannot fetch {archive.filename} from {self} ({reason}). {OTHER_WAY}") from error

    def _locate(self, archive: Archive) -> str:
        """Return the address of the archive's file."""
        try:
            page = self._index.get_project_page(archive.name, timeout=TIMEOUT_SECONDS)
        except NoSuchProjectError as error:
            raise DataError(f"{self} has no package {archive.name}. {OTHER_WAY}") from error
        except requests.RequestException:
            raise
        except ValueError as error:
            raise DataError(f"{self} answered with something else than an index page: {error}") from error
        for package in page.packages:
            if package.filename == archive.filename:
                return package.url
        raise DataError(f"{self} has no file {archive.filename} of {archive.name}. {OTHER_WAY}")

    def _receive(self, url: str, archive: Archive, part: Path) -> None:
        """Stream `url` into `part`: onto what is there if the server can continue, else from the start."""
        start = _bytes_in(part)
        if start == archive.size:
            return
        if start > archive.size:
            start = 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        with self._session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            if start and not _continues(response, start):
                start = 0
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink()
            response.raise_for_status()
            with (
                part.open("ab" if start else "wb") as stream,
                bar(archive.size, archive.filename, "B", initial=start) as progress,
            ):
                for chunk in response.iter_content(CHUNK_BYTES):
                    stream.write(chunk)
                    progress.update(len(chunk))
                    start += len(chunk)
                    if start > archive.size:
                        return  # not our file, and possibly without end


def _continues(response: requests.Response, start: int) -> bool:
    """Whether the answer goes on from byte `start`; a server without ranges answers with the whole file."""
    partial = response.status_code == requests.codes.partial_content
    return partial and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _bytes_in(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
