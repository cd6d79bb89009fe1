"""Mixtures: how they are written, how windows are shared out, and that each source gives what it would alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_study.errors import InputError
from calib_study.mixtures import mixture_name, parse_mixture, windows_of_each
from calib_study.model_files import resolve_model
from calib_study.models import load_tokenizer
from calib_study.preflight import check_evaluation_source
from calib_study.sources import resolve_source, source_hash
from calib_study.windows import draw_windows


@pytest.mark.parametrize("text", ["c4", "hub:c4", "c4,code", "c4:0.5", "a,b.txt", "C:\\texts,more", "c4:x,code:1"])
def test_what_is_no_mixture(text: str) -> None:
    assert parse_mixture(text) is None


def test_weights_are_shares_and_names_may_have_colons() -> None:
    assert parse_mixture("hub:c4:1, code:3") == (("hub:c4", 0.25), ("code", 0.75))
    assert resolve_source("c4:7,code:3") == resolve_source("c4:0.7,code:0.3") == "c4:0.7,code:0.3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c4:0,code:1", "every weight must be above zero"),
        ("c4:-1,code:1", "every weight must be above zero"),
        ("c4:nan,code:1", "every weight must be above zero"),
        ("c4:1,c4:2", "each source can be named once only"),
        ("c5:1,code:1", "unknown source 'c5'. Did you mean 'c4'"),
    ],
)
def test_bad_mixtures(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        resolve_source(text)


def test_shares_by_hand() -> None:
    # 0.7 and 0.3 of 32: 22.4 and 9.6; one window is left, and 9.6 has the larger remainder
    assert windows_of_each((("c4", 0.7), ("code", 0.3)), 32) == [22, 10]
    with pytest.raises(InputError, match="which is no whole window of 8"):
        windows_of_each((("c4", 0.99), ("code", 0.01)), 8)


@given(weights=st.lists(st.floats(1, 10), min_size=2, max_size=6), n_samples=st.integers(100, 400))
def test_shares_add_up_and_are_within_one_of_exact(weights: list[float], n_samples: int) -> None:
    parts = parse_mixture(",".join(f"s{i}:{w}" for i, w in enumerate(weights)))
    assert parts is not None
    counts = windows_of_each(parts, n_samples)
    assert sum(counts) == n_samples
    assert all(abs(count - share * n_samples) < 1 for (_, share), count in zip(parts, counts, strict=True))
    assert parse_mixture(mixture_name(parts)) is not None


def test_each_source_gives_the_windows_it_would_give_alone() -> None:
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    mixed = draw_windows("c4:0.75,code:0.25", tokenizer, n_samples=4, seq_len=32, seed=3)
    c4 = draw_windows("c4", tokenizer, n_samples=3, seq_len=32, seed=3)
    code = draw_windows("code", tokenizer, n_samples=1, seq_len=32, seed=3)
    assert np.array_equal(mixed.tokens, np.concatenate([c4.tokens, code.tokens]))
    assert mixed.n_documents == c4.n_documents + code.n_documents


def test_a_mixture_calibrates_and_does_not_evaluate() -> None:
    assert source_hash("c4:0.5,code:0.5") is None
    with pytest.raises(InputError, match="a mixture, which can serve for calibration"):
        check_evaluation_source("c4:0.5,code:0.5")
