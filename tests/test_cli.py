"""The command line: every bad request is one message, exit code 2, within seconds, and loads no model."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from calib_study import cli
from calib_study.notebooks import notebook_names

PRUNE = ["prune", "--method", "wanda", "--sparsity", "0.5"]

BAD = {
    "source": ([*PRUNE, "--source", "c5", "--out", "OUT"], "unknown source 'c5'. Did you mean 'c4'?"),
    "method": (
        ["prune", "--method", "wnada", "--sparsity", "0.5", "--source", "c4", "--out", "OUT"],
        "unknown method 'wnada'. Did you mean 'wanda'",
    ),
    "model": (
        [*PRUNE, "--source", "c4", "--model", "smollm2-135", "--out", "OUT"],
        "unknown model 'smollm2-135'. Did you mean 'smollm2-135m'?",
    ),
    "notebook": (["run", "01_data_source"], "unknown notebook '01_data_source'. Did you mean '01_data_sources'"),
    "parameter": (["run", "01", "-p", "sparsty", "0.6"], "unknown parameter 'sparsty'. Did you mean 'sparsity'?"),
    "parameter value": (["run", "01", "-p", "sparsity", "1.5"], "sparsity = 1.5: Input should be less than 1"),
    "parameter type": (["run", "01", "-p", "n_samples", "many"], "n_samples = 'many': Input should be a valid integer"),
    "parameter source": (["run", "01", "-p", "sources", "[c4, c5]"], "unknown source 'c5'"),
    "profile": (["run", "01", "--profile", "laptops"], "unknown profile of 01_data_sources 'laptops'"),
    "parameter file": (["run", "01", "-f", "nowhere.yaml"], "parameter file nowhere.yaml: no such file"),
    "sparsity": (
        ["prune", "--method", "wanda", "--sparsity", "1.5", "--source", "c4", "--out", "OUT"],
        "sparsity = 1.5: Input should be less than 1",
    ),
    "no sparsity": (["prune", "--method", "wanda", "--source", "c4", "--out", "OUT"], "--sparsity is needed"),
    "pattern": (
        [*PRUNE, "--pattern", "3:2", "--source", "c4", "--out", "OUT"],
        "pattern '3:2': N:M keeps N weights of every M, so 0 < N < M",
    ),
    "pattern and sparsity": (
        [*PRUNE, "--pattern", "1:4", "--source", "c4", "--out", "OUT"],
        "pattern '1:4' means sparsity 0.75, but sparsity 0.5 was asked",
    ),
    "n_samples": (
        [*PRUNE, "--source", "c4", "--n-samples", "0", "--out", "OUT"],
        "n_samples = 0: Input should be greater than or equal to 1",
    ),
    "seq_len": (
        [*PRUNE, "--source", "c4", "--seq-len", "9000", "--out", "OUT"],
        "seq_len 9,000 is longer than the context of smollm2-135m: 8,192 tokens",
    ),
    "token ids": (
        [*PRUNE, "--calibration-tokens", "IDS", "--out", "OUT"],
        "ids from 60000 to 60000, but the model's vocabulary has 0 to 49151",
    ),
    "token shape": (
        [*PRUNE, "--calibration-tokens", "SHAPE", "--out", "OUT"],
        "expected int64 (n_samples, seq_len), got int64 (2, 3, 5)",
    ),
    "tokens and source": (
        [*PRUNE, "--calibration-tokens", "IDS", "--source", "c4", "--out", "OUT"],
        "give --source or --calibration-tokens, not both",
    ),
    "output below a file": ([*PRUNE, "--source", "c4", "--out", "FILE/below"], "cannot write to"),
    "output is a file": ([*PRUNE, "--source", "c4", "--out", "FILE"], "is a file; name a directory"),
    "no source": ([*PRUNE, "--out", "OUT"], "method 'wanda' needs calibration text: name a source"),
    "evaluation": (
        [*PRUNE, "--source", "c4", "--evaluate", "c4,wiki", "--out", "OUT"],
        "unknown source 'wiki'. Did you mean 'wikipedia'?",
    ),
    "dtype": (
        [*PRUNE, "--source", "c4", "--dtype", "float16", "--out", "OUT"],
        "dtype 'float16': allowed are float32, bfloat16, auto",
    ),
    "schedule": (
        [*PRUNE, "--source", "c4", "--schedule", "blocks", "--out", "OUT"],
        "schedule = 'blocks': Input should be",
    ),
    "option": (
        [
            "prune",
            "--method",
            "sparsegpt",
            "--sparsity",
            "0.5",
            "--source",
            "c4",
            "--option",
            "dampin",
            "1",
            "--out",
            "OUT",
        ],
        "unknown option of sparsegpt 'dampin'. Did you mean 'damping'?",
    ),
    "owl": (
        [*PRUNE, "--source", "c4", "--owl", "--owl-lam", "-1", "--out", "OUT"],
        "lam = -1.0: Input should be greater than 0",
    ),
    "owl without owl": ([*PRUNE, "--source", "c4", "--owl-lam", "0.1", "--out", "OUT"], "--owl-multiple go with --owl"),
    "synthesis": (
        ["synthesize", "--prefix-source", "c5", "--out", "OUT"],
        "unknown source 'c5'. Did you mean 'c4'?",
    ),
    "synthesis policy": (
        ["synthesize", "--prefix-source", "c4", "--end-of-text", "stopp", "--out", "OUT"],
        "unknown end-of-text policy 'stopp'. Did you mean 'stop'?",
    ),
    "synthesis without a prefix": (
        ["synthesize", "--out", "OUT"],
        "prefixes of 2 tokens need a source; or ask for prefix_len 0",
    ),
    "synthesis of too many": (
        ["synthesize", "--prefix-source", "code", "--n-texts", "5000", "--out", "OUT"],
        "source 'code' has 248 calibration documents, and each begins one text: 5000 texts were asked",
    ),
    "synthesis of too long": (
        ["synthesize", "--prefix-len", "0", "--new-tokens", "9000", "--out", "OUT"],
        "= 9,001 is longer than the context of smollm2-135m: 8,192 tokens",
    ),
    "synthesis below a file": (["synthesize", "--prefix-len", "0", "--out", "FILE/below"], "cannot write to"),
    "filter": (["filter", "c4", "--drop", "tpo:20", "--out", "OUT"], "unknown end to drop 'tpo'. Did you mean 'top'?"),
    "filter without scores": (["filter", "c4", "--drop", "top:20", "--out", "OUT"], "name a --scorer"),
    "chapter": (["verify", "--chapter", "11_measurin"], "unknown notebook '11_measurin'. Did you mean '11_measuring'"),
    "chapter number": (["verify", "--chapter", "99"], "unknown notebook '99'. Allowed: 00_data, 01_data_sources"),
    "chapter without a grid": (["verify", "--chapter", "00"], "chapter 00_data has no published records"),
    "command": (["prun"], "unknown command 'prun'. Did you mean 'prune'"),
    "list": (["list", "source"], "unknown list 'source'. Did you mean 'sources'?"),
}


def command(arguments: list[str], folder: Path) -> list[str]:
    """Return the arguments with OUT, FILE, IDS and SHAPE replaced by paths in `folder`."""
    (folder / "file").write_text("not a folder")
    np.save(folder / "ids.npy", np.full((2, 16), 60000))
    np.save(folder / "shape.npy", np.zeros((2, 3, 5), dtype=np.int64))
    paths = {"OUT": "out", "FILE": "file", "IDS": "ids.npy", "SHAPE": "shape.npy"}
    made = []
    for argument in arguments:
        first, slash, rest = argument.partition("/")
        made.append(str(folder / paths[first]) + slash + rest if first in paths else argument)
    return made


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["calib-study", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD[name]
    began = time.perf_counter()
    assert run(monkeypatch, command(arguments, tmp_path)) == 2
    assert time.perf_counter() - began < 3
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown and len(shown.splitlines()) < 25
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "name", ["seq_len", "synthesis of too long", "filter without scores", "chapter without a grid"]
)
def test_a_bad_request_imports_nothing_slow(name: str, tmp_path: Path) -> None:
    """In a process of its own: exit code 2, and neither torch nor transformers was imported."""
    arguments = command(BAD[name][0], tmp_path)
    code = (
        "import sys; from calib_study import cli\n"
        f"sys.argv = ['calib-study', *{arguments!r}]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as stopped:\n"
        "    assert not {'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "    sys.exit(stopped.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, ["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("fetch", "list", "prune", "synthesize", "filter", "run", "book", "verify"):
        assert f"\n  {name} " in shown


def test_every_notebook_has_a_schema() -> None:
    from calib_study.notebooks import notebooks_dir, parameter_defaults
    from calib_study.parameters import SCHEMAS, validate

    assert set(SCHEMAS) == set(notebook_names())
    for slug in notebook_names():
        defaults = parameter_defaults(notebooks_dir() / f"{slug}.py")
        assert set(defaults) == set(SCHEMAS[slug].model_fields)
        validate(slug, defaults)


@pytest.mark.parametrize("slug", notebook_names())
def test_every_profile_is_valid(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from calib_study import grids, parameters
    from calib_study.model_files import ModelRef
    from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_names, profile_parameters

    hub = ModelRef("meta-llama/Llama-2-7b-hf", "hub", "meta-llama/Llama-2-7b-hf", None, 4096, 32000)
    known = grids.resolve_model
    for module in (grids, parameters):
        monkeypatch.setattr(module, "resolve_model", lambda name: hub if name == hub.name else known(name))
    defaults = parameter_defaults(notebooks_dir() / f"{slug}.py")
    for profile in profile_names(slug):
        parameters.validate(slug, {**defaults, **profile_parameters(slug, profile)})
