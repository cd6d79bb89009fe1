"""Which stored records a text on the command line means: a run id, a path, or conditions such as "source=c4,seed=0"."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from calib_study.errors import InputError, StudyError, unknown
from calib_study.records import OWL_SUFFIX, Record, Store, parse_record, read_record
from calib_study.specs import Calibration, Evaluation, Frozen, Owl, RunSpec

MIN_DIGITS = 4  # of a shortened run id
NONE = "none"
EXPORTED = "record.json"  # beside the weights of a pruned model
PARTS: dict[str, tuple[type[Frozen], str]] = {
    "calibration": (Calibration, ""),
    "allocation": (Owl, "owl_"),
    "evaluation": (Evaluation, "eval_"),
}

Scan = Callable[[], tuple[list[Record], list[str]]]


@dataclass(frozen=True)
class Selection:
    """What a text selected. store: where the arrays of its records are. problems: a line for each file not read."""

    asked: str
    records: tuple[Record, ...]
    store: Store
    problems: tuple[str, ...] = ()


def facts(spec: RunSpec) -> dict[str, str]:
    """Return every field of a specification as text, by a short name; "none" for what it does not have.

    Fields of the calibration keep their names, those of the evaluation get "eval_" before them, OWL's "owl_".
    """
    found: dict[str, str] = {}
    for name, value in spec:
        if name in PARTS:
            kind, prefix = PARTS[name]
            found |= {prefix + field: _text(getattr(value, field, None)) for field in kind.model_fields}
        else:
            found[name] = _text(value)
    found["method"] += OWL_SUFFIX if spec.allocation else ""
    return found


def condition_names() -> list[str]:
    """Return the names that a condition may have: those of `facts`."""
    names = []
    for name in RunSpec.model_fields:
        kind, prefix = PARTS.get(name, (None, ""))
        names += [prefix + field for field in kind.model_fields] if kind else [name]
    return names


def parse_conditions(text: str) -> dict[str, str]:
    """Return the conditions in "name=value,name=value"; a value may hold commas. Raises InputError with near matches.

    >>> parse_conditions("source=c4:0.7,code:0.3,seed=0")
    {'source': 'c4:0.7,code:0.3', 'seed': '0'}
    """
    conditions: dict[str, str] = {}
    for part in re.split(r",\s*(?=\w+=)", text) if text else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"condition {part!r}: expected name=value, for example source=c4.")
        if name not in condition_names():
            raise unknown("condition", name, condition_names())
        if conditions.setdefault(name, value) != value:
            raise InputError(f"condition {name}: {conditions[name]!r} and {value!r} exclude each other.")
    return conditions


def matching(records: Iterable[Record], conditions: Mapping[str, str]) -> list[Record]:
    """Return the records that meet all conditions. Raises InputError if none does, with the values that there are."""
    left = [(record, facts(record.spec)) for record in records]
    met: list[str] = []
    for name, wanted in conditions.items():
        kept = [(record, known) for record, known in left if _means(wanted, known[name])]
        if not kept:
            among = f"of {len(left)} records" + (f" with {', '.join(met)}" if met else "")
            raise InputError(f"{among}, none has {name}={wanted}: {unknown(name, wanted, {k[name] for _, k in left})}")
        left = kept
        met.append(f"{name}={wanted}")
    return [record for record, _ in left]


def select_two(a: str, b: str, *, where: str = "", store: Store | None = None) -> tuple[Selection, Selection]:
    """Return what two texts select from a store (by default the published records and those computed here).

    where: conditions on both. Raises InputError for a text that means nothing, or more than one record where it
    should be one, and for conditions that no record meets.
    """
    store = store or Store.default()
    scan = cache(store.scan)  # once for both
    common = parse_conditions(where)
    first, second = (_select(text, common, store, scan) for text in (a, b))
    return first, second


def _select(text: str, common: Mapping[str, str], store: Store, scan: Scan) -> Selection:
    if re.match(r"\w+=", text):
        own = parse_conditions(text)
        if clash := [name for name in own if common.get(name, own[name]) != own[name]]:
            raise InputError(f"condition {clash[0]}: {text!r} and what holds for both exclude each other.")
        records, problems = scan()
        return Selection(text, tuple(matching(records, {**common, **own})), store, tuple(problems))
    path = Path(text).expanduser()
    if path.suffix == ".json" or path.name != text or path.exists():
        found = _at_path(text, path)
    else:
        found = Selection(text, (_by_id(text, store),), store)
    return Selection(text, tuple(matching(found.records, common)), found.store, found.problems)


def _at_path(text: str, path: Path) -> Selection:
    """Return the record of a file or of a pruned model's directory, or all records of a folder."""
    if not path.exists():
        raise InputError(f"records {text!r}: there is no such file or folder.")
    if path.is_dir() and not (path / EXPORTED).is_file():
        records, problems = Store(path).scan()
        if not records:
            raise InputError(f"records {text!r}: the folder holds none." + "".join(f"\n{line}" for line in problems))
        return Selection(text, tuple(records), Store(path), tuple(problems))
    file = path / EXPORTED if path.is_dir() else path
    return Selection(text, (_exported(file) if file.name == EXPORTED else read_record(file),), Store(file.parent))


def _exported(file: Path) -> Record:
    """Return the record beside a pruned model, whose name is not its run_id."""
    try:
        content = file.read_text(encoding="utf-8")
        return parse_record(content, f"{json.loads(content)['run_id']}.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{file} is not a record ({type(error).__name__}: {error}).") from error


def _by_id(text: str, store: Store) -> Record:
    """Return the record whose run_id begins with a text."""
    if not re.fullmatch(r"[0-9a-fA-F]+", text):
        raise InputError(
            f"{text!r} is no record. Give a run id or its first digits ({MIN_DIGITS} at least; see `calib-study list "
            "records`), the path of a record or of a folder of them, or conditions such as source=c4,method=wanda."
        )
    if len(text) < MIN_DIGITS:
        raise InputError(f"run id {text!r} is too short: {MIN_DIGITS} digits are needed at least.")
    names = {file.stem for folder in store.read_dirs for file in folder.glob("*.json")}
    found = sorted(name for name in names if name.startswith(text.lower()))
    if not found:
        near = get_close_matches(text.lower(), {name[: len(text)] for name in names}, n=3, cutoff=0.7)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"no record has the run id {text!r}.{hint} See `calib-study list records`.")
    if len(found) > 1:
        shown = ", ".join(found[:6]) + (" …" if len(found) > 6 else "")
        raise InputError(f"run id {text!r} is the beginning of {len(found)}: {shown}. Give more digits.")
    record = store.get(found[0])
    assert record is not None  # its file was there a moment ago
    return record


def _means(wanted: str, value: str) -> bool:
    """Return whether the value of a condition means a field's value: as text, as a number, or a path's end."""
    if wanted == value or (wanted and wanted == PurePath(value).name):
        return True
    try:
        return math.isclose(float(wanted), float(value), rel_tol=1e-5)
    except ValueError:
        return PurePath(value).is_absolute() and Path(wanted).expanduser().resolve() == Path(value)


def _text(value: Any) -> str:
    if value is None or value == ():
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, tuple):
        return ",".join("=".join(map(_text, one)) if isinstance(one, tuple) else _text(one) for one in value)
    return str(value)
