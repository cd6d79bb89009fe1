"""The command `compare`: what it prints, and that every bad request is one message and loads no model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_cli import run
from tiny_records import group, keep, spec

from calib_study.cli import app
from calib_study.records import Store

C4 = {0: (1.0, 2.0, 3.0, 6.0), 1: (1.1, 2.0, 3.2, 6.1), 2: (0.9, 2.1, 3.0, 6.2)}
CODE = {seed: tuple(x + 0.3 + 0.1 * seed for x in values) for seed, values in C4.items()}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of own records: Wanda on two texts, and magnitude scored on other windows."""
    store = Store(tmp_path / "records")
    group(store, C4)
    group(store, CODE, source="code")
    keep(store, spec("magnitude", None, evaluation={"n_windows": 5}), (1.0, 2.0, 3.0, 4.0, 5.0))
    monkeypatch.setenv("CALIB_STUDY_RECORDS", str(store.write_dir))
    return store.write_dir


def test_it_prints_the_table(records: Path) -> None:
    result = CliRunner().invoke(app, ["compare", "source=c4", "source=code", "--where", "model=m"])
    assert result.exit_code == 0
    assert result.output.splitlines()[:4] == [
        "A: m: wanda 0.5 on c4, seeds 0, 1, 2",
        "B: m: wanda 0.5 on code, seeds 0, 1, 2",
        "",
        "differs  A   B",
    ]
    assert "Student's over seeds" in result.output


def test_it_prints_json_and_names_unreadable_files_on_stderr(records: Path) -> None:
    (records / "abcd000000000000.json").write_text("{")
    result = CliRunner().invoke(app, ["compare", str(records), spec(source="code").run_id, "--where", "seed=0"])
    assert result.exception is not None and "are of 3" in str(result.exception)
    arguments = ["compare", "source=c4", "source=code", "--where", "model=m", "--over", "both", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    held = json.loads(result.stdout)
    assert held["over"] == "both" and len(held["rows"]) == 3
    assert "not readable" in result.stderr and "abcd000000000000" in result.stderr


BAD = {
    "id": (["0000000000000000", "ID"], "no record has the run id '0000000000000000'"),
    "short id": (["ab", "ID"], "4 digits are needed at least"),
    "neither": (["wanda", "ID"], "'wanda' is no record. Give a run id"),
    "condition": (["sorce=c4", "ID"], "unknown condition 'sorce'. Did you mean 'source'"),
    "value": (["source=c5,model=m", "ID"], "unknown source 'c5'. Did you mean 'c4'"),
    "where": (["source=c4", "source=code", "--where", "model"], "expected name=value"),
    "setting": (["model=m", "ID"], "should be one setting drawn with several seeds"),
    "same": (["ID", "ID"], "A and B are the same"),
    "windows": (["ID", "OTHER"], "scored on other windows (eval_n_windows 4 and 5)"),
    "path": (["nowhere/x.json", "ID"], "there is no such file or folder"),
    "over": (["ID", "OTHER", "--over", "items"], "'items' is not one of 'seeds', 'both'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(
    name: str, records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD[name]
    ids = {"ID": spec().run_id, "OTHER": spec("magnitude", None, evaluation={"n_windows": 5}).run_id}
    assert run(monkeypatch, ["compare", *(ids.get(argument, argument) for argument in arguments)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown and len(shown.splitlines()) < 25


def test_it_loads_no_model(records: Path) -> None:
    arguments = ["compare", spec().run_id, spec(source="code").run_id]
    code = (
        "import sys; from calib_study import cli\n"
        f"sys.argv = ['calib-study', *{arguments!r}]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as stopped:\n"
        "    assert not {'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "    sys.exit(stopped.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A: ")
