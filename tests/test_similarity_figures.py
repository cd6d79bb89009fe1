"""Figures of the chapter on likeness from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from test_figures import drawn, words
from test_likeness_tables import scores, texts
from test_similarity_tables import CORPORA, MODELS, Cfg, cells

from calib_study import similarity_figures
from calib_study.environment import describe_environment
from calib_study.errors import InputError
from calib_study.glassbox import Recipe
from calib_study.glassbox_reports import Curve, Report
from calib_study.likeness_tables import correlation_table, membership_scores_table
from calib_study.similarity_tables import contrast_table


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def report(*sources: str) -> Report:
    curve = Curve(steps=(1, 2), loss=(5.0, 4.0))
    return Report(
        recipe=Recipe(sources=sources),
        distinct_tokens=dict.fromkeys(sources, 9),
        curve=curve,
        held_out=dict.fromkeys(CORPORA, curve),
        perplexity={"chat": 80.0, "math": 30.4},
        weights_sha256="0" * 64,
        wall_s=1.0,
        environment=describe_environment("cpu", "onednn"),
        finished="2026-01-01T00:00:00+00:00",
    )


def test_training_has_a_panel_for_each_model() -> None:
    reports = {"box-chat": report("chat"), "box-math": report("math")}
    figure = similarity_figures.fig_training(reports)
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["box-chat", "box-math"]
    widths = [[line.get_linewidth() for line in ax.lines[1:]] for ax in figure.axes]
    assert widths == [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]  # what the model is trained on is thick
    assert similarity_figures.describe_training({"box-chat": report("chat")}) == (
        "Curves of training. box-chat, 2.0 million tokens: perplexity 80 on held-out chat, 30 on held-out math."
    )


def test_the_map_has_each_model_on_its_own_corpus_then_the_model_of_all_on_each() -> None:
    table = cells(own=0.3, match=0.1, texts=(0.0, 0.2, 0.4))
    means = similarity_figures.crossed_means(table, MODELS, CORPORA)
    assert list(means.index) == [
        *(("box-chat", "chat"), ("box-math", "math"), ("box-french", "french")),
        *(("box-all", corpus) for corpus in CORPORA),
    ]
    # 0 - 0.3 - 0.1, 0.2 and 0.4 around their mean 0.2 / 3
    assert_allclose(means.iloc[0], [-0.4 - 0.2 / 3, 0.2 - 0.2 / 3, 0.4 - 0.2 / 3])
    figure = similarity_figures.fig_crossed(table, MODELS, CORPORA)
    drawn(figure)
    ax = figure.axes[0]
    frames = [(round(p.get_x() + 0.47), round(p.get_y() + 0.46), p.get_linestyle()) for p in ax.patches]
    assert frames == [(i % 3, i, "-" if i < 3 else ":") for i in range(6)]
    assert "box-math, on math" in words(figure)
    assert "box-chat on chat: chat -0.47, math +0.13, french +0.33;" in similarity_figures.describe_crossed(
        table, MODELS, CORPORA
    )


def test_contrasts_are_points_with_intervals() -> None:
    table = contrast_table(cells(own=0.3, noise=0.05), Cfg(), MODELS)
    figure = similarity_figures.fig_contrasts(table)
    drawn(figure)
    (ax,) = figure.axes
    points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert_allclose(sorted(points), sorted(table["mean"]))
    assert ax.get_title("left") == "50% sparsity" and "own corpus, not another" in words(figure)
    assert f"Wanda at 50%, own text: {table['mean'].iloc[0]:+.3f} [" in similarity_figures.describe_contrasts(table)


def test_likeness_has_a_panel_for_each_measure() -> None:
    table = texts([0.1, 0.2, 0.3, 0.5, 0.4])
    correlations = correlation_table(table)
    figure = similarity_figures.fig_likeness(table, correlations)
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes][2] == "rank correlation +0.90"
    assert all(sum(len(line.get_xdata()) for line in ax.lines) >= 5 for ax in figure.axes)
    said = similarity_figures.describe_likeness(table, correlations)
    assert said.startswith("Damage by text: text0 0.100, text1 0.200") and "unigram divergence +0.90" in said


def test_membership_has_three_boxes_a_model() -> None:
    groups = {"box": {"seen": scores(0.0), "unseen": scores(-1.0), "own text": scores(1.0)}}
    table = membership_scores_table(groups)
    figure = similarity_figures.fig_membership(table)
    drawn(figure)
    assert {"seen", "unseen", "own text"} <= set(words(figure).split("\n"))
    assert similarity_figures.describe_membership(table).startswith("Median Min-50 %++ of windows. box, seen: ")


@pytest.mark.parametrize("draw", ["fig_contrasts", "fig_membership"])
def test_nothing_to_draw_is_an_error(draw: str) -> None:
    with pytest.raises(InputError, match=draw):
        getattr(similarity_figures, draw)(pd.DataFrame())
