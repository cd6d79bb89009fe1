"""Figures from made-up data: what is drawn where, and that awkward data (one seed, long names) are survived."""

import subprocess
import sys
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import XTick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.testing import assert_allclose

from calib_study import figure_style, figures
from calib_study.errors import InputError
from calib_study.figure_style import (
    METHOD_STYLE,
    SOURCE_STYLE,
    log_ticks,
    method_label,
    source_label,
    source_marks,
    window,
)
from calib_study.frames import advantage_table, damage_table, interval_table
from calib_study.methods import METHODS
from calib_study.statistics import Interval, SameSourceNull

DENSE = {"c4": 20.0, "code": 6.0, "wikipedia": 15.0}
SOURCES = ("c4", "wikipedia", "code", "random")
LONG = ("hub:organisation/a-data-set-with-a-long-name", "/home/reader/texts/letters_of_1890_to_1920.jsonl")


def made_up(
    sources: tuple[str, ...] = SOURCES, n_seeds: int = 3, magnitude: float = 10.0, floor: float = 8.0
) -> pd.DataFrame:
    """Return a tidy frame: dense x 2 for the first source, x 2.1 for the next ...; own text 10 % better."""
    runs: list[tuple[str, str | None, int, float]] = [("dense", None, 0, 1.0), ("magnitude", None, 0, magnitude)]
    for place, source in enumerate(sources):
        factor = floor if source == "random" else 2 + 0.1 * place
        runs += [("wanda", source, seed, factor * (1 + 0.01 * seed)) for seed in range(n_seeds)]
    table = pd.DataFrame(
        [
            (f"{m}-{s}-{k}", m, s, k, d, dense * factor * (0.9 if s == d else 1.0))
            for m, s, k, factor in runs
            for d, dense in DENSE.items()
        ],
        columns=["run_id", "method", "source", "seed", "dataset", "value"],
    )
    setting = {"model": "m", "dtype": "float32", "sparsity": 0.5, "pattern": "2:4", "policy": "packed"}
    setting |= {"schedule": "block", "allocation": "uniform", "options": ""}
    setting |= {"n_samples": 8, "seq_len": 64, "min_tokens": None}
    return table.assign(**setting, metric="perplexity", unit="per token", n=100)


def tables(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return intervals of perplexity, damage, and intervals of damage."""
    damage = damage_table(frame)
    intervals = interval_table(frame, ["method", "source", "dataset"], log=True)
    return intervals, damage, interval_table(damage, ["method", "source"], "damage")


def null(observed: float = 0.3, p_value: float = 0.02) -> SameSourceNull:
    draws = np.random.default_rng(0).gamma(20, 0.005, size=500)
    q95 = float(np.quantile(draws, 0.95))
    return SameSourceNull(observed, float(draws.mean()), q95, p_value, observed / 0.05, 0.05, 6, 5, draws)


def words(artist: Figure | Axes) -> str:
    """Return all visible text, one piece a line."""
    return "\n".join(t.get_text() for t in artist.findobj(Text) if t.get_visible() and t.get_text())


def drawn(figure: Figure) -> np.ndarray:
    """Draw the figure, check that no text is smaller than 9 pt or leaves the page, and return its pixels."""
    figure.set_dpi(100)  # as on the page
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox
    unseen = {tick.label1 for tick in figure.findobj(XTick)}  # those beyond the limits exist, but are not drawn
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in unseen:
            assert text.get_fontsize() >= 9, text
            box = text.get_window_extent(renderer)
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, f"{text.get_text()!r} leaves the page"
    return np.asarray(canvas.buffer_rgba())


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before = dict(plt.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


# --- style --------------------------------------------------------------------------------------------------


def test_no_two_sources_or_methods_look_alike() -> None:
    assert len(set(SOURCE_STYLE.values())) == len(SOURCE_STYLE)
    assert len({(style.colour, str(style.dash)) for style in METHOD_STYLE.values()}) == len(METHOD_STYLE)
    assert METHOD_STYLE["dense"].dash == "--"
    assert set(METHODS) < set(METHOD_STYLE)
    assert {f"{name}+owl" for name in METHODS if name not in ("dense", "random")} < set(METHOD_STYLE)
    marks = source_marks([*SOURCE_STYLE, *LONG, "a.txt"])
    assert len(set(marks.values())) == len(SOURCE_STYLE) + 3


def test_every_method_has_a_label_of_its_own() -> None:
    labels = [method_label(name) for name in METHOD_STYLE]
    assert len(set(labels)) == len(labels)
    assert [method_label(name) for name in ("dense", "dsnot+owl", "mine")] == ["dense", "DSnoT + OWL", "mine"]


def test_a_source_of_ones_own_looks_the_same_in_whatever_order() -> None:
    assert source_marks(["b", "c4", "a"]) == source_marks(["a", "b", "c4"])


def test_labels_keep_the_end_of_a_long_name() -> None:
    assert source_label("random") == "random tokens"
    assert [source_label(name) for name in LONG] == ["…-set-with-a-long-name", "…of_1890_to_1920.jsonl"]
    assert source_label("/some/folder/that/is/deep/x.txt") == "x.txt"


def test_window_keeps_the_sources_visible() -> None:
    # core 1 long, at most 3 long: 0 and 3 fit one by one, but 4 after 0 would make it 4 long
    low, high, inside = window([1.0, 2.0], [0.0, 4.0, 3.0])
    assert inside == [True, False, True]
    assert_allclose([low, high], [0 - 0.18, 3 + 0.18])  # 6 % of 3 on both sides


@pytest.mark.parametrize(("low", "high"), [(18.0, 23.0), (20.0, 75.0), (9.0, 2e4), (0.8, 0.93), (3.0, 1e9)])
def test_log_axes_have_a_few_round_ticks(low: float, high: float) -> None:
    with figure_style.canvas(2.0) as (_, (ax,)):
        log_ticks(ax, low, high)
        ticks = ax.get_xticks()
    assert 2 <= len(ticks) <= 12 and low <= min(ticks) and max(ticks) <= high
    assert len(set(map(figure_style.number, ticks))) == len(ticks)


def test_figures_are_page_wide_white_cards() -> None:
    with figure_style.canvas(2.0) as (figure, _):
        pass
    assert figure.get_size_inches().tolist() == [7.5, 2.0] and figure.dpi == 200
    assert to_hex(figure.get_facecolor()) == "#ffffff"


# --- perplexity by source and the front page ----------------------------------------------------------------


def test_perplexity_has_a_panel_for_each_held_out_set_and_a_row_for_each_source() -> None:
    frame = made_up()
    figure = figures.fig_perplexity_by_source(frame, tables(frame)[0])
    drawn(figure)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title("left") for ax in panels] == [f"on held-out {d}" for d in DENSE]
    # from least damage: c4 (2.0), wikipedia (2.1), code (2.2), each 10 % better at home; random last
    rows = [t.get_text() for t in panels[0].get_yticklabels()]
    assert rows == ["c4", "wikipedia", "code", "random tokens"]
    assert "one seed of 3" in words(figure) and "lower is better" in words(figure)


def test_every_seed_is_a_point_and_the_mean_is_the_given_one() -> None:
    frame = made_up()
    intervals = tables(frame)[0]
    ax = figures.fig_perplexity_by_source(frame, intervals).axes[0]
    of_c4 = [line for line in ax.lines if line.get_color() == SOURCE_STYLE["c4"].colour]
    # c4 on held-out c4: 20 x 2 x 0.9 = 36, x 1.01 and x 1.02 for the other seeds
    assert_allclose(of_c4[0].get_xdata(), [36.0, 36.36, 36.72])
    expected = intervals.query("source == 'c4' and dataset == 'c4'")["mean"].to_numpy()
    assert_allclose(of_c4[1].get_xdata(), expected)
    assert np.ptp(of_c4[0].get_ydata()) == 0


def test_what_is_far_off_is_an_arrow_with_its_number() -> None:
    frame = made_up(magnitude=500.0, floor=40.0)
    for ax in figures.fig_perplexity_by_source(frame, tables(frame)[0]).axes[:3]:
        text = words(ax)
        assert "magnitude" in text and "→" in text and "← dense" in text
        assert len(ax.collections) == 0  # no vertical line
    assert "magnitude 10,000 →" in words(figures.fig_perplexity_by_source(frame, tables(frame)[0]).axes[0])


def test_what_is_near_is_a_line_in_the_style_of_its_method() -> None:
    frame = made_up(magnitude=2.15)
    figure = figures.fig_perplexity_by_source(frame, tables(frame)[0])
    for ax, dense in zip(figure.axes, DENSE.values(), strict=False):
        (line,) = ax.collections
        assert_allclose(line.get_segments()[0][:, 0], 2.15 * dense)
        assert to_hex(line.get_color()[0]) == to_hex(METHOD_STYLE["magnitude"].colour)


def test_dense_is_shown_in_all_panels_or_in_none() -> None:
    frame = made_up(sources=("c4", "code"))
    frame.loc[(frame["method"] == "dense") & (frame["dataset"] == "code"), "value"] = 12.0  # close, there only
    figure = figures.fig_perplexity_by_source(frame, tables(frame)[0])
    assert [("← dense" in words(ax)) for ax in figure.axes[:3:2]] == [True, True]


def test_front_page_by_hand() -> None:
    frame = made_up(sources=("c4", "wikipedia"), n_seeds=1, magnitude=2.1)
    _, damage, intervals = tables(frame)
    (ax,) = figures.fig_front_page(damage, intervals).axes
    # c4: ln 2 + ln 0.9 / 3 = 0.658027 (own text in one of three sets)
    assert_allclose(ax.lines[0].get_xdata(), [0.658027], atol=1e-6)
    assert "magnitude 0.742" in words(ax)  # ln 2.1
    assert figures.describe_front_page(intervals) == (
        "Mean damage by wanda pruning for 2 calibration texts: from 0.66 nats per token with c4 to 0.71 with "
        "wikipedia; magnitude pruning, without text: 0.74."
    )


def test_mixed_settings_and_missing_methods_are_refused() -> None:
    frame = made_up()
    intervals, damage, damage_intervals = tables(frame)
    with pytest.raises(InputError, match="mixes several of sparsity"):
        figures.fig_perplexity_by_source(pd.concat([frame, frame.assign(sparsity=0.6)]), intervals)
    with pytest.raises(InputError, match="mixes several of schedule"):
        figures.fig_front_page(pd.concat([damage, damage.assign(schedule="dense")]), damage_intervals)
    with pytest.raises(InputError, match="fig_front_page: no runs of a method with a calibration source"):
        figures.fig_front_page(damage, damage_intervals, method="sparsegpt")


@pytest.mark.parametrize("n_seeds", [1, 2, 20])
@pytest.mark.parametrize("sources", [("c4",), tuple(SOURCE_STYLE), (*SOURCE_STYLE, *LONG), ("random",)])
def test_all_figures_survive_few_seeds_and_many_long_names(n_seeds: int, sources: tuple[str, ...]) -> None:
    frame = made_up(sources, n_seeds, magnitude=1e7)
    intervals, damage, damage_intervals = tables(frame)
    drawn(figures.fig_perplexity_by_source(frame, intervals))
    drawn(figures.fig_front_page(damage, damage_intervals))
    drawn(figures.fig_own_text_advantage(advantage_table(frame, "wanda")))


# --- own text, shares, null -----------------------------------------------------------------------------------


def test_own_text_heat_map_by_hand() -> None:
    logs = np.log([[1.0, 1.2], [1.5, 1.0], [3.0, 30.0]])
    table = pd.DataFrame(logs, index=["c4", "code", "random"], columns=["c4", "code"])
    figure = figures.fig_own_text_advantage(table)
    drawn(figure)
    (ax,) = figure.axes
    cells = [t.get_text() for t in ax.texts]
    assert cells == ["best", "+20 %", "+50 %", "best", "+200 %", "+2,900 %"]
    assert len(ax.patches) == 2  # c4 on c4, code on code
    said = figures.describe_own_text_advantage(table)
    assert "Best texts: c4 for c4, code for code. Best at home: 2 of 2 sets." in said


def test_variance_shares_are_bars_with_their_numbers() -> None:
    shares = {
        "source": Interval(0.62, 0.5, 0.7, 5),
        "method": Interval(0.3, 0.2, 0.4, 5),
        "source x method": Interval(-0.01, 0.0, 0.02, 5),
        "seed": Interval(0.09, None, None, 1),
    }
    figure = figures.fig_variance_shares(shares)
    drawn(figure)
    (ax,) = figure.axes
    assert_allclose([bar.get_width() for bar in ax.patches], [62, 30, 0, 9])
    assert [t.get_text() for t in ax.texts] == ["62 %  (50 to 70)", "30 %  (20 to 40)", "0 %  (0 to 2)", "9 %"]
    assert "source 62 %, method 30 %, source x method 0 %, seed 9 %" in figures.describe_variance_shares(shares)


@pytest.mark.parametrize(("observed", "scale"), [(0.3, "linear"), (0.02, "linear"), (5.0, "log")])
def test_null_shows_draws_quantile_and_the_observed_range(observed: float, scale: str) -> None:
    given = null(observed)
    figure = figures.fig_same_source_null(given)
    drawn(figure)
    (ax,) = figure.axes
    assert ax.get_xscale() == scale
    assert_allclose([c.get_segments()[0][0, 0] for c in ax.collections], [given.null_q95, observed])
    assert sum(bar.get_height() for bar in ax.patches) == 500
    low, high = ax.get_xlim()
    assert low <= observed <= high
    assert f"observed {observed:.2g}  (p = 0.020;" in words(ax)
    side = "above" if observed > given.null_q95 else "not above"
    assert f"lies {side} that quantile" in figures.describe_same_source_null(given)


def test_the_smallest_possible_p_is_only_a_bound() -> None:
    assert "(p ≤ 0.002)" in figures.describe_same_source_null(null(p_value=1 / 501))
    assert "(p = 0.004)" in figures.describe_same_source_null(null(p_value=2 / 501))


def test_describe_perplexity_leaves_the_floor_out() -> None:
    said = figures.describe_perplexity_by_source(tables(made_up())[0])
    assert said.startswith("Perplexity after wanda pruning for 4 calibration sources: on held-out c4 from 36.4 with c4")
    assert "random" not in said


# --- how they are made --------------------------------------------------------------------------------------


def test_the_same_data_give_the_same_picture_and_are_left_alone() -> None:
    frame = made_up()
    intervals = tables(frame)[0]
    before = frame.copy(), intervals.copy()
    first, second = (drawn(figures.fig_perplexity_by_source(frame, intervals)) for _ in range(2))
    assert_allclose(first, second, rtol=0)
    pd.testing.assert_frame_equal(frame, before[0])
    pd.testing.assert_frame_equal(intervals, before[1])


def test_figures_need_no_torch_and_no_display() -> None:
    code = "import sys; import calib_study.figures; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
