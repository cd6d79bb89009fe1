"""Which runs the chapters' profiles ask for, counted from their parameters alone.

`specs` of checked parameters looks up the model and every text, on the hub where they are there, and needs the model's
own texts to be written. What a profile would cost must be known before; so here nothing is looked up.
"""

from functools import cache
from itertools import product
from typing import Any

from calib_study.errors import InputError
from calib_study.grids import Grid, Scored
from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_names, profile_parameters
from calib_study.parameters import CROSSED, SCHEMAS, DataSources, Filtering, Measuring, OwnText, SelfGeneration
from calib_study.specs import Evaluation, RunSpec

PAPER = "paper"


def chapters_planned(profile: str = PAPER) -> list[str]:
    """Return the chapters that run a grid and have this profile."""
    return [slug for slug, schema in SCHEMAS.items() if issubclass(schema, Grid) and profile in profile_names(slug)]


@cache
def planned(slug: str, profile: str = PAPER) -> tuple[RunSpec, ...]:
    """Return every run of a chapter under a profile, as its parameters' `specs` have them but for hashes and names.

    The model, and texts of the hub or of the model's own, need not be there; so nothing pins their content, and own
    texts have names of their own here.
    """
    found: dict[RunSpec, None] = {}
    for grid, seed in _grids(_parameters(slug, profile)):
        found |= dict.fromkeys(run for run in _runs(grid) if seed is None or run.seed == seed)
    return tuple(found)


def written(slug: str, profile: str = PAPER) -> dict[tuple[Any, ...], int]:
    """Return the texts that the model writes for a chapter: by all that decides one, its tokens if none stops early."""
    cfg = _parameters(slug, profile)
    if not isinstance(cfg, OwnText):
        return {}
    how = tuple(getattr(cfg, name) for name in OwnText.model_fields if name != "prefix_len")
    return {(name, *how): cfg.n_texts * cfg.new_tokens for name in _own_texts(cfg)}


def _parameters(slug: str, profile: str) -> Any:
    """Return the parameters of a chapter, not checked: to check them the hub would be asked for model and texts.

    Raises InputError for a chapter without a grid, and as `profile_parameters` does.
    """
    schema = SCHEMAS.get(slug)
    if schema is None or not issubclass(schema, Grid):
        raise InputError(f"chapter {slug!r} runs no grid. Chapters that do: {', '.join(chapters_planned(profile))}.")
    defaults = parameter_defaults(notebooks_dir() / f"{slug}.py")
    return schema.model_construct(**{**defaults, **profile_parameters(slug, profile)})


def _own(source: str, prefix_len: int) -> str:
    """Return what the model's own text after so many tokens of a source is called here."""
    return f"own text after {prefix_len} tokens of {source}" if prefix_len else "own text after nothing"


def _own_texts(cfg: Any) -> list[str]:
    """Return the model's own texts that a chapter needs, each once."""
    asked = [(source, cfg.prefix_len) for source in getattr(cfg, "prefix_sources", cfg.sources)]
    if isinstance(cfg, SelfGeneration):
        asked += [(cfg.prefix_sources[0], length) for length in cfg.prefix_lens]
    return list(dict.fromkeys(_own(*which) for which in asked))


def _grids(cfg: Any) -> list[tuple[Grid, int | None]]:
    """Return the grids that a chapter's parameters stand for, each with the only seed that is run, or None for all."""
    if isinstance(cfg, SelfGeneration):
        return [(grid, None) for grid in _own_text_grids(cfg)]
    if isinstance(cfg, Filtering):
        return _filter_grids(cfg)
    found: list[Grid] = [cfg]
    if isinstance(cfg, DataSources):
        fields = {name: getattr(cfg, CROSSED.get(name, name)) for name in Scored.model_fields}
        found.append(Scored.model_construct(**fields))
    if isinstance(cfg, Measuring):
        fewer = {"pattern": "unstructured", "sources": cfg.sources[:1], "methods": cfg.methods[:2], "n_seeds": 1}
        found += [cfg.model_copy(update={**fewer, "sparsity": level}) for level in cfg.milder_sparsities]
    return [(grid, None) for grid in found]


def _own_text_grids(cfg: SelfGeneration) -> list[Grid]:
    """Return the grids of real and own texts, of lengths of prefixes, and of added texts."""
    mixed = [name for s in cfg.added_sources for name in (s, f"{s} and {_own(s, cfg.prefix_len)}")]
    first, twice = {"methods": cfg.methods[:1]}, {"n_samples": 2 * cfg.n_samples}
    parts: list[dict[str, Any]] = [
        {"sources": [*cfg.sources, *(_own(source, cfg.prefix_len) for source in cfg.prefix_sources)]},
        {"sources": [_own(cfg.prefix_sources[0], n) for n in sorted({*cfg.prefix_lens, cfg.prefix_len})], **first},
        {"sources": mixed, **first, **twice},
    ]
    return [cfg.model_copy(update=part) for part in parts]


def _filter_grids(cfg: Filtering) -> list[tuple[Grid, int | None]]:
    """Return the grid of whole texts, then of what each filter leaves: at random, another choice for each seed."""
    whole = _own_texts(cfg)
    found: list[tuple[Grid, int | None]] = [(cfg.model_copy(update={"sources": whole}), None)]
    for text, end, drop in product(whole, cfg.ends, cfg.drops):
        for seed in range(cfg.n_seeds) if end == "random" else [None]:
            name = f"{text} less {drop:g} % {end} {'' if seed is None else seed}"
            found.append((cfg.model_copy(update={"sources": [name]}), seed))
    return found


def _runs(grid: Grid) -> list[RunSpec]:
    """Return the runs of one grid, as `Grid.specs` does, without asking what the texts and the model hold."""
    measured = {name: value for name, value in grid.measured().items() if value not in (False, ())}
    evaluation = Evaluation(sources=tuple(grid.eval_sources), **measured)
    return grid.runs(evaluation, dict.fromkeys(grid.sources), model=grid.model)
