"""The file that a benchmark writes: settings, the machine and the code, and a row for each thing it measured."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ConfigDict

from calib_study import paths
from calib_study.errors import InputError
from calib_study.specs import Frozen

Row = dict[str, Any]
# Not compared when a measurement goes on: a commit may leave what is measured as it was; code_sha256 tells.
NOT_COMPARED = ("git_commit", "git_dirty")


class Benchmark(Frozen):
    """What a benchmark measured: `settings` say what, `environment` where and by which code."""

    model_config = ConfigDict(strict=True, allow_inf_nan=True)

    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: list[Row]


def write_benchmark(file: Path, benchmark: Benchmark) -> None:
    """Write the file; it appears whole or not at all. Raises InputError if its folder cannot be written."""
    text = json.dumps(benchmark.model_dump(), indent=2) + "\n"
    with paths.atomic_path(file) as part:
        part.write_text(text, encoding="utf-8")


def read_benchmark(file: Path, script: str) -> Benchmark:
    """Return what `benchmarks/<script>` wrote. Raises InputError if the file is something else."""
    try:
        return Benchmark.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no result of benchmarks/{script} --json: {error}") from error


def benchmark_table(file: Path, columns: Sequence[str], script: str) -> pd.DataFrame:
    """Return some columns of the rows that `benchmarks/<script>` wrote; a value that a row lacks is missing.

    `attrs` are the settings. Without rows if the file is not there. Raises InputError if it is something else.
    """
    if not file.is_file():
        return pd.DataFrame(columns=list(columns))
    found = read_benchmark(file, script)
    table = pd.DataFrame([[row.get(name) for name in columns] for row in found.rows], columns=list(columns))
    table.attrs.update(found.settings)
    return table


def begun(file: Path, benchmark: Benchmark, script: str) -> Benchmark:
    """Return the benchmark with the rows it finds in a file already, or as it is if there is no file.

    The commit is then the file's. Raises InputError if the file was measured with other settings, on another machine,
    or by other code; the message names what differs first.
    """
    if not file.exists():
        return benchmark
    before = read_benchmark(file, script)
    now = json.loads(benchmark.model_dump_json())  # as it would be read
    for old, new in ((before.settings, now["settings"]), (before.environment, now["environment"])):
        for name in [name for name in new | old if name not in NOT_COMPARED]:
            if old.get(name) != new.get(name):
                raise InputError(
                    f"{file} was measured with {name} {old.get(name)!r}, not {new.get(name)!r}. "
                    "Measure as it was, name another file, or remove this one to begin anew."
                )
    return before


def code_hash(modules: Sequence[str]) -> str:
    """Return the sha256 of some modules of the package, which tells whether what is measured was changed."""
    files = [paths.root() / "calib_study" / f"{name}.py" for name in sorted(modules)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
