"""Figures of the chapter on where a text shows, from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from test_figures import LONG, drawn, words
from test_mechanism_tables import NAMES, SEEDS, down, excess, swaps, up

from calib_study import mechanism_figures as figures
from calib_study.errors import InputError
from calib_study.mechanism_tables import DRAWS, TEXTS

KINDS = ("q_proj", "o_proj", "down_proj")


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def masks() -> pd.DataFrame:
    """Return texts 1, 2, ... per cent apart by block, draws one per cent less."""
    table = excess(up)
    return table.assign(texts=(table["block"] + 1) / 100, draws=table["block"] / 100, excess=0.01)


def by_layer() -> pd.DataFrame:
    table = masks()
    return pd.concat([table.assign(kind=kind, excess=0.01 * i * table["block"]) for i, kind in enumerate(KINDS)])


def outliers(names: tuple[str, ...] = NAMES) -> pd.DataFrame:
    rows = [
        (name, seed, block, 1 + block + 0.1 * i) for i, name in enumerate(names) for seed in SEEDS for block in range(5)
    ]
    return pd.DataFrame(rows, columns=["source", "seed", "block", "outliers"])


def errors() -> pd.DataFrame:
    rows = [
        (source, 0, dataset, source == dataset, block, kind, 0.02 if source == dataset else 0.03)
        for source in NAMES
        for dataset in NAMES
        for block in range(5)
        for kind in KINDS
    ]
    return pd.DataFrame(rows, columns=["source", "seed", "dataset", "own", "block", "kind", "error"])


def ratios(by: str) -> pd.DataFrame:
    values = KINDS if by == "kind" else range(5)
    return pd.DataFrame(
        [("c4", "code", 0, value, 1.5) for value in values], columns=["dataset", "source", "seed", by, "ratio"]
    )


def scans() -> pd.DataFrame:
    table = swaps(lambda block: block + 1.0, down)
    draws = table[table["swap"] == TEXTS].assign(swap=DRAWS)
    return pd.concat([table, draws.assign(other=draws["base"], cost=draws["cost"] / 2)])


def test_the_map_has_a_row_for_each_kind_in_order() -> None:
    figure = figures.fig_overlap(by_layer())
    drawn(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(KINDS)
    assert figure.axes[0].images[0].get_array().shape == (3, 5)
    said = figures.describe_overlap(by_layer())
    assert "q_proj 0.0; o_proj 2.0; down_proj 4.0" in said and "Most in down_proj of block 4 (8.0)" in said


def test_activations_have_a_line_for_each_text() -> None:
    figure = figures.fig_activations(masks(), outliers())
    drawn(figure)
    assert len(figure.axes[1].lines) == 3 and "two draws of one text" in words(figure)
    said = figures.describe_activations(masks(), outliers())
    assert "two texts 0.030 nats" in said and "by more than 0.20 points" in said


def test_errors_have_own_and_foreign() -> None:
    figure = figures.fig_errors(errors(), ratios("kind"))
    drawn(figure)
    assert len(figure.axes[0].lines) == 2
    said = figures.describe_errors(errors(), ratios("kind"))
    assert "2.0 % on the text" in said and "3.0 % with another" in said and "o_proj 1.50" in said


def test_block_costs_have_a_bar_for_each_block() -> None:
    figure = figures.fig_block_costs(scans())
    drawn(figure)
    assert len(figure.axes[0].patches) == 5
    said = figures.describe_block_costs(scans())
    assert "most in blocks 0 (5), 1 (4), 2 (3), least in block 4 (1)" in said


def test_the_slide_has_three_panels_of_the_same_blocks() -> None:
    figure = figures.fig_slide(masks(), ratios("block"), scans())
    drawn(figure)
    assert len(figure.axes) == 3 and figure.axes[2].get_yscale() == "log"
    assert figure.axes[0].get_xlim() == figure.axes[2].get_xlim()
    said = figures.describe_slide(masks(), ratios("block"), scans())
    assert "two texts do not share 1.0 to 5.0 %" in said and "adds 50.0 to 50.0 %" in said
    assert "most in block 4 (5 nats per token)" in said and "over blocks 15, with another draw 7.5" in said


def test_some_blocks_only_keep_their_places() -> None:
    some = scans()
    figure = figures.fig_block_costs(some[some["block"] % 2 == 0])
    drawn(figure)
    assert figure.axes[0].get_xlim()[1] > 4


def test_long_names_fit() -> None:
    drawn(figures.fig_activations(masks(), outliers(LONG)))


@pytest.mark.parametrize(
    "draw",
    [
        lambda empty: figures.fig_overlap(empty),
        lambda empty: figures.fig_activations(empty, outliers()),
        lambda empty: figures.fig_slide(empty, ratios("block"), scans()),
    ],
)
def test_nothing_to_draw_is_an_error(draw: object) -> None:
    with pytest.raises(InputError, match="no rows to draw"):
        draw(masks().iloc[:0].assign(kind=""))  # type: ignore[operator]
