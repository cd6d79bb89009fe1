"""The notebooks: their names and profiles, the .ipynb beside each .py, and a run with given parameters."""

import ast
import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calib_study import paths
from calib_study.errors import InputError, StudyError, unknown
from calib_study.yaml_values import read_yaml

Validator = Callable[[str, dict[str, Any]], Any]  # (slug, given) -> a pydantic model with the checked values
SHOWN_LINES = 12  # of a failed cell's traceback, so that the error fits one screen
PACKAGE = Path(__file__).resolve().parent
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebooks_dir() -> Path:
    """Return the folder of the notebooks' sources."""
    return paths.root() / "notebooks"


def notebook_names() -> list[str]:
    """Return the slugs of the project's notebooks, such as "01_data_sources", in order."""
    return sorted(source.stem for source in notebooks_dir().glob("[0-9][0-9]_*.py"))


def resolve_notebook(name: str | Path) -> Path:
    """Return the notebook meant by a slug, a number ("01" or "1"), or the path of a .py or .ipynb.

    Raises InputError, with near matches, if there is none.
    """
    path = Path(name)
    if path.suffix in (".py", ".ipynb") and path.is_file():
        return path.resolve()
    wanted = path.stem if path.suffix in (".py", ".ipynb") else str(name)
    for slug in notebook_names():
        if wanted == slug or (wanted.isdigit() and int(wanted) == int(slug[:2])):
            return notebooks_dir() / f"{slug}.py"
    raise unknown("notebook", str(name), notebook_names())


def profile_names(slug: str) -> list[str]:
    """Return the names of the parameter sets kept for a notebook."""
    found = (notebooks_dir() / "profiles").glob(f"{slug}.*.yml")
    return sorted(path.name.removeprefix(f"{slug}.").removesuffix(".yml") for path in found)


def profile_parameters(slug: str, profile: str) -> dict[str, Any]:
    """Return the parameters that a profile sets; the file is one that `papermill -f` takes too.

    Raises InputError if the notebook has no such profile or the file is not a list of `name: value`.
    """

    if profile not in profile_names(slug):
        raise unknown(f"profile of {slug}", profile, profile_names(slug))
    path = notebooks_dir() / "profiles" / f"{slug}.{profile}.yml"
    content = read_yaml(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold one `name: value` a line, not {type(content).__name__}.")
    return {str(name): value for name, value in content.items()}


# --- the pair: NN_slug.py is the source, NN_slug.ipynb is derived from it ---------------------------------


def read_notebook(path: Path) -> Any:
    """Return the notebook in a .py (percent format) or .ipynb file, as nbformat's NotebookNode.

    From a .py its cells get ids that depend on their content only, so that the same source always gives the
    same .ipynb, and an edit shows as an edit of that cell alone.
    """
    import jupytext
    import nbformat

    if path.suffix == ".ipynb":
        try:
            return nbformat.read(path, as_version=4)
        except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
            raise InputError(f"{path} is not a notebook: {error}") from error
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata["kernelspec"] = dict(KERNELSPEC)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def sync(*, write: bool = True) -> list[Path]:
    """Return the .ipynb files that differ from what their .py says, after writing them anew.

    With `write=False` nothing is written. A derived .ipynb has no outputs.
    """
    import nbformat

    changed = []
    for slug in notebook_names():
        source = notebooks_dir() / f"{slug}.py"
        pair = source.with_suffix(".ipynb")
        text = nbformat.writes(read_notebook(source)) + "\n"
        if pair.is_file() and pair.read_text(encoding="utf-8") == text:
            continue
        changed.append(pair)
        if write:
            with paths.atomic_path(pair) as part:
                part.write_text(text, encoding="utf-8")
    return changed


def study_slug(source: Path) -> str:
    """Return whose parameters and profiles a notebook has: the slug in its `check("slug", …)`, or its own name.

    A copy that `templates.new_study` made has those of its chapter.
    """
    for cell in read_notebook(source).cells:
        if cell.cell_type == "code" and (called := re.search(r"\bcheck\(\s*[\"']([^\"']+)[\"']", cell.source)):
            return called[1]
    return source.stem


def parameter_defaults(source: Path) -> dict[str, Any]:
    """Return the literals assigned in a notebook's `parameters` cell: its defaults.

    Raises InputError if the notebook has no such cell, or something there is not a literal.
    """
    cells = [cell for cell in read_notebook(source).cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells:
        raise InputError(f"{source} has no cell tagged `parameters`.")
    defaults = {}
    for node in ast.parse(cells[0].source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name) or node.value is None:
            raise InputError(f"{source}, parameters cell: expected `name: type = literal`, got {ast.unparse(node)!r}.")
        try:
            defaults[target.id] = ast.literal_eval(node.value)
        except ValueError as error:
            raise InputError(f"{source}, parameters cell: {target.id} is not a literal.") from error
    return defaults


# --- the stamp: when an executed copy is still what a run would give --------------------------------------


def notebook_stamp(source: Path, parameters: Mapping[str, Any]) -> str:
    """Return a hash of everything an executed notebook depends on.

    That is: its source, the parameters given, the package, the catalogue, the claims, the pinned versions, published
    benchmarks, profiles whose cost is estimated, and which records and measurements are published (their names are
    hashes of what they hold).
    """
    digest = hashlib.sha256(source.read_bytes())
    digest.update(json.dumps(dict(parameters), sort_keys=True, default=str).encode())
    files = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".mplstyle"))
    files += [paths.root() / "data" / name for name in ("catalogue.toml", "claims.yml")]
    files += [paths.root() / "requirements.txt", *sorted((notebooks_dir() / "profiles").glob("*.paper.yml"))]
    files += sorted((paths.root() / "benchmarks" / "results").glob("*.json"))
    for path in files:
        digest.update(f"\n{path.name}\n".encode())
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    published = (paths.results_dir(), paths.published_measurements_dir())
    names = sorted(path.relative_to(folder).as_posix() for folder in published for path in folder.rglob("*.json"))
    digest.update("\n".join(names).encode())
    return digest.hexdigest()


def up_to_date(output: Path, stamp: str) -> bool:
    """Return True if `output` is a notebook executed to its end under exactly this stamp."""
    try:
        content = json.loads(output.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(content.get("metadata", {}).get("calib_study", {}).get("stamp") == stamp)


# --- a run ------------------------------------------------------------------------------------------------


def run_notebook(
    name: str | Path,
    parameters: Mapping[str, Any],
    output: Path,
    *,
    progress: bool = True,
    validate: Validator | None = None,
) -> Path:
    """Execute a notebook with the given parameters and return `output`, the executed copy.

    Parameters are checked before anything is started (by `validate`, or else `parameters.validate`), and the
    checked values are injected, so that "true" is True. The copy appears at `output` only after a clean run;
    a failed one is kept beside it as NAME.failed.ipynb.

    Raises InputError for an unknown notebook, parameter or value, or an `output` that cannot be written;
    StudyError with the end of the traceback if a cell failed or the kernel died.
    """
    source = resolve_notebook(name)
    given = {**parameter_defaults(source), **parameters}
    checked = (validate or _schema_of_the_project())(study_slug(source), given).model_dump(mode="json")
    values = {key: checked[key] for key in parameters}
    if output.suffix != ".ipynb" or output.is_dir():
        raise InputError(f"the executed notebook should be a file named *.ipynb, not {output}.")
    paths.check_writable(output.parent)
    stamp = notebook_stamp(source, parameters)
    kept = output.with_suffix(".failed.ipynb")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="calib-study-") as folder:
        part = Path(folder) / "run.ipynb"
        failure = _execute(read_notebook(source), part, values, source.stem, progress)
        if failure:
            shutil.copyfile(part, kept)
            raise StudyError(f"notebook {source.stem} {failure}\nIts run up to there is kept in {kept}")
        _finish(part, output, source, {"stamp": stamp, "parameters": values, "began": began})
    kept.unlink(missing_ok=True)
    return output


def _schema_of_the_project() -> Validator:
    from calib_study.parameters import validate

    return validate


def _execute(notebook: Any, part: Path, values: dict[str, Any], slug: str, progress: bool) -> str:
    """Execute `notebook` into the file `part`; return what went wrong, or an empty text.

    What papermill writes into the metadata says "completed" even after the kernel was killed, so only a clean
    return and an executed last cell count.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError

    from calib_study.kernels import manager_class

    nbformat.write(notebook, part)
    try:
        executed = papermill.execute_notebook(
            notebook,
            str(part).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
            values,
            kernel_name="python3",
            progress_bar={"desc": slug, "unit": "cell"} if progress else False,
            stderr_file=sys.stderr if progress else None,  # the bars of what runs inside a cell
            kernel_manager_class=manager_class(),
        )
    except PapermillExecutionError as error:
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)) or f"{error.ename}: {error.evalue}"
        tail = "\n".join(f"    {line}" for line in trace.rstrip().splitlines()[-SHOWN_LINES:])
        return f"failed in its cell [{error.exec_count}]:\n{tail}"
    except (PapermillException, RuntimeError, TimeoutError) as error:
        return (
            f"lost its kernel: {error}\nMost often memory ran out; ask for fewer or shorter samples, "
            "or close other programs."
        )
    code = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    if code and code[-1].execution_count is None:
        return "stopped before its last cell without saying why."
    return ""


def _finish(part: Path, output: Path, source: Path, run: dict[str, Any]) -> None:
    """Put an executed notebook in its place, stamped, without this machine's paths and progress bars."""
    import nbformat

    notebook = nbformat.read(part, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _is_progress_bar(out)]
    folder = "notebooks/" if source.parent == notebooks_dir() else ""
    notebook.metadata["papermill"].update(input_path=f"{folder}{source.stem}.ipynb", output_path=output.name)
    notebook.metadata["calib_study"] = {
        "notebook": source.stem,
        "parameters": run["parameters"],
        "seconds": round(time.monotonic() - run["began"], 1),
        "stamp": run["stamp"],
    }
    with paths.atomic_path(output) as final:
        final.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def _is_progress_bar(output: Any) -> bool:
    return bool(output.output_type == "stream" and output.name == "stderr" and "\r" in output.text)


def main() -> None:
    """Write every .ipynb from its .py and say which changed: `python -m calib_study.notebooks`."""
    changed = sync()
    for pair in changed:
        print(f"wrote {pair.relative_to(paths.root())}")
    if not changed:
        print(f"all {len(notebook_names())} pairs agree")


if __name__ == "__main__":
    main()
