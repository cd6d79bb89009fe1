"""Names, units and directions of metrics."""

from calib_study.divergence import Divergence
from calib_study.metrics import task_metrics, text_metrics
from calib_study.perplexity import Perplexity, WindowMean
from calib_study.task_items import TaskMetric

SCORE = Perplexity(nll=2.0, nll_stderr=0.5, n_tokens=14, by_window=(1.5, 2.5), tokens_by_window=(7, 7))


def mean(value: float) -> WindowMean:
    return WindowMean(value, value / 10, (value, value))


def test_perplexity_is_the_exponential_of_the_loss_with_its_error_to_first_order() -> None:
    perplexity, nll = text_metrics("c4", SCORE, None, None)
    assert (perplexity.name, nll.name) == ("perplexity", "nll")
    assert perplexity.value == SCORE.value
    assert perplexity.stderr == SCORE.value * 0.5  # d exp(x) = exp(x) dx
    assert perplexity.items == () and nll.items == (1.5, 2.5)
    assert nll.stderr == 0.5 and nll.n == perplexity.n == 14
    assert not perplexity.higher_is_better and not nll.higher_is_better


def test_divergence_and_bits_follow() -> None:
    divergence = Divergence(mean(0.1), mean(0.2), mean(0.3), mean(0.9), 14)
    found = {metric.name: metric for metric in text_metrics("c4", SCORE, divergence, mean(1.2))[2:]}
    assert {name: metric.value for name, metric in found.items()} == {
        "bits_per_byte": 1.2,
        "jensen_shannon": 0.1,
        "kl_dense_pruned": 0.2,
        "kl_pruned_dense": 0.3,
        "agreement": 0.9,
    }
    assert [name for name, metric in found.items() if metric.higher_is_better] == ["agreement"]
    assert all(metric.dataset == "c4" and len(metric.items) == 2 for metric in found.values())


def test_metrics_of_a_task_keep_the_definition_s_direction() -> None:
    class Result:
        task = "lambada_openai"
        metrics = {  # noqa: RUF012 - stands for a TaskResult
            "perplexity": TaskMetric("perplexity", 30.0, 2.0, 50, False),
            "acc": TaskMetric("acc", 0.4, None, 50, True),
        }

    perplexity, accuracy = task_metrics([Result()])  # type: ignore[list-item]
    assert (perplexity.dataset, perplexity.unit, perplexity.higher_is_better) == ("lambada_openai", "per word", False)
    assert (accuracy.value, accuracy.unit, accuracy.stderr, accuracy.n) == (0.4, "share of items", None, 50)
