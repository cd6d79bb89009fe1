"""Methods of the user's own: what is registered, what is refused, and what a specification and a record say of it."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import SEQ_LEN, tiny_spec
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from calib_study import own_methods
from calib_study.criteria import Request
from calib_study.errors import InputError, NumericalError
from calib_study.figure_style import METHOD_STYLE
from calib_study.layers import all_layers
from calib_study.methods import METHODS, Pattern
from calib_study.model_files import resolve_model
from calib_study.own_methods import code_sha256, register_method
from calib_study.preflight import check_specs
from calib_study.prune import achieved_sparsity, prune_
from calib_study.records import Store
from calib_study.specs import make_spec, parse_spec
from calib_study.study import run_grid

TOKENS = torch.arange(4 * SEQ_LEN).reshape(4, SEQ_LEN).numpy() % 90
POWER = 0.5


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    """Take away what a test registers."""
    before = set(METHODS)
    yield
    for name in set(METHODS) - before:
        del METHODS[name]


def like_wanda(weight: Tensor, norms: Tensor) -> Tensor:
    return weight.abs() * norms


def like_magnitude(weight: Tensor) -> Tensor:
    return weight.abs()


def spec(method: str, **changes: Any) -> Any:
    return make_spec(**{"model": "m", "method": method, "sparsity": 0.5, "source": "c4", **changes})


# --- what is registered -----------------------------------------------------------------------------------


def test_a_method_is_known_by_its_name() -> None:
    method = register_method("mine", like_wanda, "my own")
    assert METHODS["mine"] is method
    assert method.needs_calibration and method.needs_seed and method.group == "row"
    plain = register_method("plain", like_magnitude, "my own", reads_text=False, compare="layer")
    assert not plain.needs_calibration and not plain.needs_seed and plain.group == "layer"


def test_a_name_of_the_projects_is_refused_and_an_own_one_replaced() -> None:
    for name in ("wanda", "dense"):
        with pytest.raises(InputError, match="is one of the project's"):
            register_method(name, like_wanda, "")
    register_method("mine", like_wanda, "first")
    assert register_method("mine", like_wanda, "again").summary == "again"


@pytest.mark.parametrize("unfit", ["", "Mine", "1st", "a b", "a+owl", "a,b"])
def test_an_unfit_name_is_refused(unfit: str) -> None:
    with pytest.raises(InputError, match="use lower-case letters"):
        register_method(unfit, like_wanda, "")


def test_an_unknown_comparison_group_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'row'"):
        register_method("mine", like_wanda, "", compare="rows")  # type: ignore[arg-type]


def uses_a_constant(weight: Tensor, norms: Tensor) -> Tensor:
    return weight.abs() * norms**POWER


def uses_a_neighbour(weight: Tensor, norms: Tensor) -> Tensor:
    return torch.stack([like_magnitude(row) for row in weight]) * norms


def has_a_default(weight: Tensor, norms: Tensor, power: float = 2.0) -> Tensor:
    return weight.abs() * norms**power


def encloses(power: float) -> Callable[..., Tensor]:
    def inner(weight: Tensor, norms: Tensor) -> Tensor:
        return weight.abs() * norms**power

    return inner


def uses_libraries(weight: Tensor, norms: Tensor) -> Tensor:
    return functional.softplus(weight.abs()) * math.sqrt(2) * torch.sqrt(norms) * max(1, len(norms))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (uses_a_constant, "uses POWER from outside"),
        (uses_a_neighbour, "uses like_magnitude from outside"),
        (encloses(2.0), "uses power from outside"),
        (has_a_default, r"expected \(weight, norms\), no defaults"),
        (like_magnitude, r"expected \(weight, norms\)"),
        (lambda weight, norms: weight * norms, "made by `def`"),
        (torch.abs, "made by `def`"),
    ],
)
def test_a_function_whose_text_does_not_say_all_is_refused(score: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        register_method("mine", score, "")
    assert "mine" not in METHODS


def test_modules_and_what_they_define_may_be_used() -> None:
    assert register_method("mine", uses_libraries, "").code_sha256


def test_a_function_without_source_text_is_refused() -> None:
    made: dict[str, Any] = {"__name__": "made"}
    exec("def score(weight, norms):\n    return weight", made)
    with pytest.raises(InputError, match="its source text cannot be found"):
        register_method("mine", made["score"], "")


def write(folder: Path, name: str, body: str) -> Callable[..., Any]:
    """Return the function `score` of a new file with this body."""
    (folder / f"{name}.py").write_text(f"def score(weight, norms):\n    {body}\n")
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile((folder / f"{name}.py").read_text(), str(folder / f"{name}.py"), "exec"), namespace)
    score: Callable[..., Any] = namespace["score"]
    return score


def test_the_hash_is_that_of_the_text_alone(tmp_path: Path) -> None:
    one, same, other = (write(tmp_path, f"f{i}", f"return weight * {n}") for i, n in enumerate((1, 1, 2)))
    hashes = [code_sha256(score, n_arguments=2) for score in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


# --- what it computes -------------------------------------------------------------------------------------


def zeros(model: LlamaForCausalLM) -> Tensor:
    return torch.cat([(layer.weight() == 0).flatten() for layer in all_layers(model).values()])


def pruned(model: LlamaForCausalLM, method: str, pattern: str = "unstructured", schedule: str = "block") -> Tensor:
    """Return the mask of a copy of the model."""
    copy = LlamaForCausalLM(model.config).eval()
    copy.load_state_dict(model.state_dict())
    prune_(copy, Request(METHODS[method], 0.5, Pattern.parse(pattern)), TOKENS, schedule=schedule, progress=False)
    assert achieved_sparsity(copy)[0] == pytest.approx(0.5, abs=0.01)
    return zeros(copy)


@pytest.mark.tiny
@pytest.mark.parametrize(("pattern", "schedule"), [("unstructured", "block"), ("2:4", "sequential"), ("4:8", "dense")])
def test_a_formula_written_out_prunes_like_the_projects(
    tiny_model: LlamaForCausalLM, pattern: str, schedule: str
) -> None:
    register_method("mine", like_wanda, "")
    register_method("plain", like_magnitude, "", reads_text=False, compare="layer")
    for own, known in (("mine", "wanda"), ("plain", "magnitude")):
        expected = pruned(tiny_model, known, pattern, schedule)
        torch.testing.assert_close(pruned(tiny_model, own, pattern, schedule), expected)


def changes_its_argument(weight: Tensor, norms: Tensor) -> Tensor:
    return weight.zero_() + norms


def of_another_shape(weight: Tensor, norms: Tensor) -> Tensor:
    return norms


def no_numbers(weight: Tensor, norms: Tensor) -> Tensor:
    return weight.abs() * norms * float("nan")


@pytest.mark.tiny
def test_a_score_cannot_change_the_model(tiny_model: LlamaForCausalLM) -> None:
    register_method("mine", changes_its_argument, "")
    before = {name: layer.weight().clone() for name, layer in all_layers(tiny_model).items()}
    prune_(tiny_model, Request(METHODS["mine"], 0.5, Pattern()), TOKENS, progress=False)
    for name, layer in all_layers(tiny_model).items():
        kept = layer.weight() != 0
        torch.testing.assert_close(layer.weight()[kept], before[name][kept])


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (of_another_shape, InputError, r"q_proj: the score should return a tensor of the weight's shape \(32, 32\)"),
        (no_numbers, NumericalError, "q_proj: 1024 of 1024 scores are not a number"),
    ],
)
def test_a_wrong_result_is_reported_with_the_layers_name(
    tiny_model: LlamaForCausalLM, score: Callable[..., Any], error: type[Exception], message: str
) -> None:
    register_method("mine", score, "")
    with pytest.raises(error, match=message):
        prune_(tiny_model, Request(METHODS["mine"], 0.5, Pattern()), TOKENS, progress=False)


# --- what a specification says ----------------------------------------------------------------------------


def test_a_specification_carries_the_hash_of_the_code(tmp_path: Path) -> None:
    ids = []
    for index, body in enumerate(("return weight.abs()", "return norms * weight.abs()")):
        method = register_method("mine", write(tmp_path, f"g{index}", body), "")
        made = spec("mine")
        assert made.method_hash == method.code_sha256
        ids.append(made.run_id)
    assert ids[0] != ids[1]
    assert spec("wanda").method_hash is None
    assert "method_hash" not in spec("wanda").model_dump(exclude_none=True)  # so older run ids are what they were


def test_the_hash_is_for_own_methods_only() -> None:
    register_method("mine", like_wanda, "")
    fields = spec("mine").model_dump()
    with pytest.raises(InputError, match="method_hash is for a method of the user's own"):
        parse_spec({**fields, "method_hash": None})
    with pytest.raises(InputError, match="method_hash is for a method of the user's own"):
        parse_spec({**fields, "method": "wanda"})
    with pytest.raises(InputError, match="unknown method 'mien'"):
        parse_spec({**fields, "method": "mien", "method_hash": None})


@pytest.mark.tiny
def test_a_record_can_be_read_where_the_method_is_not_registered_but_not_computed(
    tiny_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALIB_STUDY_CACHE", str(tmp_path))
    model, source = tiny_files
    register_method("mine", like_wanda, "")
    asked, by_wanda = tiny_spec(model, source, "mine"), tiny_spec(model, source, "wanda")
    store = Store(tmp_path / "records")
    found = run_grid([asked, by_wanda], model=str(model), store=store, progress=False)
    assert found[0].metrics == found[1].metrics
    del METHODS["mine"]
    record = store.get(asked.run_id)
    assert record == found[0] and record is not None and record.spec.method_hash == asked.method_hash
    with pytest.raises(InputError, match="Register that code"):
        check_specs([asked], resolve_model(str(model)))
    register_method("mine", changes_its_argument, "")
    with pytest.raises(InputError, match=r"but [0-9a-f]{12}… is registered"):
        check_specs([asked], resolve_model(str(model)))


def test_the_groups_are_those_of_a_method() -> None:
    assert set(own_methods.GROUPS) == {"row", "layer"}


def test_own_methods_have_a_colour_in_figures_too() -> None:
    assert METHOD_STYLE["mine"] == METHOD_STYLE["another"]
    assert "mine" not in METHOD_STYLE and METHOD_STYLE["mine"] not in METHOD_STYLE.values()
