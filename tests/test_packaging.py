"""Tests of what holds the project together: equal pins, imports that point downwards, a quick start."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import calib_study

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "calib_study"

# A module may import only those before it. A new module is added where it belongs.
ORDER = """
    errors paths progress matmul yaml_values array_files
    methods own_methods catalogue package_index fetch task_data task_items specs
    formats mixtures manifests generated sources glassbox model_files preflight
    windows prompts layers mask_samples offload models scores masks dsnot owl sparsegpt moments walk suffix
    moment_cache dense_moments criteria prune
    sampling column_cache generation text_parts
    perplexity membership divergence branching task_prompts tasks
    stores records measurements metrics environment study verification measurement_runs
    export evaluate synthesis filtering
    glassbox_reports glassbox_training
    selection statistics resampling paired_scores compare components inference association frames verdicts
    measures crossed measuring_tables
    text_likeness norm_distance similarity_tables likeness_tables
    benchmark_files mask_tables schedule_tables amount_tables packing_tables
    scaling_levels scaling_tables harness_tables own_text_facts own_text_tables filter_tables
    mechanism mechanism_tables likeness
    grids mechanism_parameters similarity_parameters parameters
    figure_style figures schedule_figures amount_figures packing_figures scaling_figures
    harness_figures crossed_figures measure_figures
    own_text_figures filter_figures mechanism_figures similarity_figures
    crossed_judgements similarity_judgements claims_figures
    kernels notebooks templates chapters plans paper_costs claims claims_tables book
    cli_options cli_lists cli_synthesis cli_glassbox cli_compare cli_new cli
""".split()

# These say at once what is wrong with a request, so none may load these libraries when imported.
QUICK = "errors paths methods catalogue fetch task_data specs preflight parameters records notebooks cli".split()
SLOW_LIBRARIES = {
    "accelerate",
    "datasets",
    "jupytext",
    "lm_eval",
    "matplotlib",
    "nbformat",
    "pandas",
    "papermill",
    "pyarrow",
    "scipy",
    "seaborn",
    "sklearn",
    "torch",
    "transformers",
}
# Draws, counts or reads; the model is loaded elsewhere.
NO_TORCH = [*QUICK, *"progress package_index formats sources model_files".split()]
NO_TORCH += "task_items resampling components inference mask_tables schedule_tables schedule_figures".split()
NO_TORCH += "benchmark_files harness_tables harness_figures".split()
NO_TORCH += "amount_tables amount_figures packing_tables packing_figures".split()
NO_TORCH += "scaling_levels scaling_tables scaling_figures".split()
NO_TORCH += "association measures crossed measuring_tables crossed_figures measure_figures".split()
NO_TORCH += "manifests generated prompts text_parts synthesis filtering".split()
NO_TORCH += "text_likeness norm_distance".split()
NO_TORCH += "stores measurements mechanism_tables mechanism_figures".split()
NO_TORCH += "own_methods selection paired_scores compare templates cli_compare cli_new".split()
NO_TORCH += "statistics frames verdicts figure_style figures kernels book".split()
NO_TORCH += "chapters cli_options cli_lists cli_synthesis".split()
NO_TORCH += "crossed_judgements claims claims_tables claims_figures plans paper_costs".split()
NO_TORCH += "own_text_facts own_text_tables own_text_figures filter_tables filter_figures".split()
TORCH = {"torch", "transformers", "lm_eval", "accelerate"}


# --- pins -------------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Return {package: version}; every line must be `name==version`."""
    found = {}
    for line in lines:
        name, equals, version = line.partition("==")
        assert equals and version, f"{line!r} is not pinned with =="
        found[normal(name)] = version
    return found


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_environment_yml_has_the_pins_of_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (listed,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pins([line for line in listed if not line.startswith("-")]) == pins(project()["dependencies"])
    assert {"-c requirements.txt", "-e ."} <= set(listed)
    assert "python=3.11" in environment["dependencies"] and project()["requires-python"] == ">=3.11"


def test_requirements_txt_pins_every_direct_dependency_and_extra_alike() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    locked = pins([line for line in lines if line and not line.startswith("#")])
    extras = [line for extra in project()["optional-dependencies"].values() for line in extra]
    direct = pins(project()["dependencies"] + extras)
    assert {name: locked.get(name) for name in direct} == direct
    assert not [version for version in locked.values() if "+" in version]  # a local label fits one build only


def test_every_library_the_package_imports_is_pinned_directly() -> None:
    providers = packages_distributions()  # {"yaml": ["PyYAML"], ...}
    used = {name for module in ORDER for name in imports_of(module, True) if not name.startswith(".")}
    foreign = used - set(sys.stdlib_module_names) - {"calib_study"}
    allowed = set(pins(project()["dependencies"] + project()["optional-dependencies"]["cluster"]))
    missing = {name for name in foreign if not allowed & {normal(package) for package in providers.get(name, [name])}}
    assert not missing


def test_the_version_is_the_packages() -> None:
    assert project()["version"] == calib_study.__version__


# --- imports ----------------------------------------------------------------------------------------------


def imported(tree: ast.AST, *, everywhere: bool) -> set[str]:
    """Return the modules a syntax tree imports: `calib_study.x` as ".x", others by their top name.

    Without `everywhere`, only what is imported when the module is: not inside functions, not for types only.
    """
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                names.add(f".{rest.split('.')[0]}" if top == "calib_study" and rest else top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full: from calib_study.x import y"
            top, _, rest = (node.module or "").partition(".")
            if top == "calib_study":
                inner = [rest.split(".")[0]] if rest else [alias.name for alias in node.names]
                names |= {f".{name}" for name in inner if (PACKAGE / f"{name}.py").is_file()}
            else:
                names.add(top)
        elif everywhere or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or for_types(node)):
            names |= imported(node, everywhere=everywhere)
    return names


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@cache
def imports_of(module: str, everywhere: bool) -> frozenset[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    return frozenset(imported(tree, everywhere=everywhere))


def loads(module: str) -> set[str]:
    """Return every library that importing a module loads, by way of the others too."""
    found, todo, done = set(), [module], set()
    while todo:
        current = todo.pop()
        done.add(current)
        for name in imports_of(current, False):
            if not name.startswith("."):
                found.add(name)
            elif name[1:] not in done:
                todo.append(name[1:])
    return found


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_downwards(module: str) -> None:
    inner = {name[1:] for name in imports_of(module, True) if name.startswith(".")}
    assert inner <= set(ORDER[: ORDER.index(module)]), f"{module} imports what lies above it"


@pytest.mark.parametrize("module", NO_TORCH)
def test_importing_it_loads_no_torch(module: str) -> None:
    assert not loads(module) & TORCH


@pytest.mark.parametrize("module", QUICK)
def test_importing_it_is_quick(module: str) -> None:
    assert not loads(module) & SLOW_LIBRARIES


def test_only_one_module_knows_how_transformers_lays_out_a_model() -> None:
    inside = re.compile(r"\.model\.layers|\.self_attn|\.mlp\b|\.lm_head")
    knows = {path.stem for path in PACKAGE.glob("*.py") if inside.search(path.read_text(encoding="utf-8"))}
    assert knows <= {"layers"}


def test_the_command_line_starts_without_slow_libraries() -> None:
    code = f"import sys, calib_study.cli; print(sorted({SLOW_LIBRARIES!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- .ci/environment.py -----------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The installer of the Makefile, on a project of two files."""
    spec = importlib.util.spec_from_file_location("environment_script", ROOT / ".ci" / "environment.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_text("a==1\n")
    monkeypatch.setattr(module, "HERE", str(tmp_path))
    return module


def test_the_environment_is_installed_again_only_when_something_changed(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[list[str]] = []

    def pretend(venv: str, extras: list[str]) -> int:
        installed.append(extras)
        return 0

    monkeypatch.setattr(environment, "install", pretend)
    venv = str(tmp_path / "venv")
    for extras in ([], [], ["dev"], ["dev"], []):
        assert environment.main([venv, *extras]) == 0
    assert installed == [[], ["dev"]]
    (tmp_path / "requirements.txt").write_text("a==2\n")
    assert environment.main([venv]) == 0
    assert environment.main([venv]) == 0
    assert installed == [[], ["dev"], []]


def test_a_failed_installation_is_tried_again(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def fail(command: list[str], **_: Any) -> int:
        calls.append(command)
        return 1

    monkeypatch.setattr(environment.subprocess, "call", fail)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    assert environment.main([str(tmp_path / "venv"), "dev"]) == 1
    assert environment.main([str(tmp_path / "venv"), "dev"]) == 1
    assert len(calls) == 2
    assert ".[dev]" in calls[0] and calls[0][-2:] == ["--constraint", "requirements.txt"]


def test_an_old_python_is_refused_by_name(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "OLDEST", (99, 1))
    assert environment.main(["unused"]) == 2
    message = capsys.readouterr().err
    assert "needs Python 99.1" in message and "make book PYTHON=" in message
