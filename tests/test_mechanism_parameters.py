"""The parameters of the chapter on where a text shows, and the measurements that its profiles ask for."""

from collections import Counter
from typing import Any

import pytest

from calib_study.errors import InputError
from calib_study.measurements import BlockSwap, LayerProfile, MeasurementStore
from calib_study.mechanism_parameters import Mechanism
from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_parameters
from calib_study.parameters import validate
from calib_study.paths import published_measurements_dir

SLUG = "09_mechanism"


def checked(profile: str | None = None, **changes: Any) -> Mechanism:
    given = parameter_defaults(notebooks_dir() / f"{SLUG}.py") | (profile_parameters(SLUG, profile) if profile else {})
    found = validate(SLUG, given | changes)
    assert isinstance(found, Mechanism)
    return found


def kind_of(request: Any) -> str:
    if not isinstance(request, BlockSwap):
        return str(request.kind)
    if request.base is None or request.other is None:
        return "alone"
    return "draws" if request.base.text == request.other.text else "texts"


@pytest.mark.parametrize("profile", [None, "smoke", "laptop", "published"])
def test_every_draw_is_profiled_pruned_block_by_block_and_swapped_twice(profile: str | None) -> None:
    cfg = checked(profile)
    n = len(cfg.sources) * cfg.n_seeds
    requests = cfg.requests()
    assert Counter(map(kind_of, requests)) == {"layer_profile": n, "alone": n, "texts": n, "draws": n}
    assert len({one.measurement_id for one in requests}) == 4 * n
    assert all(one.stride == cfg.stride for one in requests)


def test_the_other_text_and_the_other_draw_are_the_next() -> None:
    sources = ["c4", "wikipedia", "code"]
    swaps = [one for one in checked("published").requests() if isinstance(one, BlockSwap) and one.base is not None]
    pairs = [(one.base, one.other) for one in swaps]
    for base, other in pairs:
        assert base is not None and other is not None
        if base.text == other.text:
            assert other.seed == (base.seed + 1) % 3
        else:
            assert other.seed == base.seed
            assert sources.index(other.text.source) == (sources.index(base.text.source) + 1) % 3


def test_errors_are_judged_on_windows_of_their_own_number() -> None:
    for one in checked("published").requests():
        assert one.evaluation.n_windows == (8 if isinstance(one, LayerProfile) else 1)
        assert one.evaluation.sources == ("c4", "wikipedia", "code")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["wanda", "sparsegpt"]}, "name one method"),
        ({"methods": ["wanda+owl"]}, "without OWL"),
        ({"methods": ["magnitude"]}, "reads none"),
        ({"sources": ["c4", "math"]}, "missing: math"),
        ({"sources": ["c4", "code", "random"]}, "'random' is no text"),
        ({"sources": ["c4"]}, "at least two texts"),
        ({"stride": 0}, "stride = 0"),
        ({"error_windows": 0}, "error_windows = 0"),
        ({"n_seeds": 2}, "n_seeds = 2"),
        ({"eval_sources": ["c4", "code", "c4"]}, "each can be named once"),
        ({"strid": 1}, "Did you mean 'stride'"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(**changes)


def test_every_published_measurement_is_part_of_the_project() -> None:
    store = MeasurementStore(published_measurements_dir())
    requests = checked("published").requests()
    found = [store.get(request.measurement_id) for request in requests]
    assert [one.request for one in found if one is not None] == requests
    assert all(store.arrays(one) for one in found if one is not None)
    assert not any(one.environment.git_dirty for one in found if one is not None)
