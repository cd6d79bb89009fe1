"""The lists of the command line: each names what it should, and none is forgotten."""

import pytest
from click.testing import CliRunner

from calib_study.cli import app
from calib_study.cli_lists import LISTS

EXPECTED = {
    "sources": "wikipedia",
    "models": "smollm2-135m",
    "methods": "wanda",
    "tasks": "piqa",
    "notebooks": "01_data_sources",
    "profiles": "01_data_sources published",
    "records": "smollm2-135m: wanda 0.5 on c4",
    "measurements": "smollm2-135m: layers under c4, seed 0",
}


@pytest.mark.parametrize("what", LISTS)
def test_lists(what: str) -> None:
    result = CliRunner().invoke(app, ["list", what])
    assert result.exit_code == 0
    assert EXPECTED[what] in result.output


def test_the_help_names_every_list() -> None:
    shown = CliRunner().invoke(app, ["list", "--help"]).output
    assert [name for name in LISTS if name not in shown] == []
