"""From scores to the metrics of a record: what each is called, in which unit, and which direction is better."""

from collections.abc import Iterable

from calib_study.divergence import Divergence
from calib_study.perplexity import Perplexity, WindowMean
from calib_study.records import Metric
from calib_study.task_items import TaskResult

# Metrics of tasks by the harness's names; all others are shares of items.
TASK_UNITS = {"perplexity": "per word"}


def text_metrics(
    source: str, score: Perplexity, divergence: Divergence | None, bits: WindowMean | None
) -> list[Metric]:
    """Return the metrics of a model on one held-out text.

    Args:
        bits: bits per byte, None where they are not asked.
    """
    n = score.n_tokens

    def metric(name: str, mean: WindowMean, unit: str, *, higher: bool = False) -> Metric:
        return Metric(
            name=name,
            dataset=source,
            value=mean.value,
            unit=unit,
            higher_is_better=higher,
            n=n,
            stderr=mean.stderr,
            items=mean.by_window,
        )

    # the standard error of exp(nll) to first order: exp(nll) times that of nll
    metrics = [
        metric("perplexity", WindowMean(score.value, score.value * score.nll_stderr, ()), "per token"),
        metric("nll", WindowMean(score.nll, score.nll_stderr, score.by_window), "nats/token"),
    ]
    if bits is not None:
        metrics.append(metric("bits_per_byte", bits, "bits/byte"))
    if divergence is not None:
        metrics += [
            metric("jensen_shannon", divergence.jensen_shannon, "nats/token"),
            metric("kl_dense_pruned", divergence.kl_dense_pruned, "nats/token"),
            metric("kl_pruned_dense", divergence.kl_pruned_dense, "nats/token"),
            metric("agreement", divergence.agreement, "share of tokens", higher=True),
        ]
    return metrics


def task_metrics(results: Iterable[TaskResult]) -> list[Metric]:
    """Return the metrics of tasks: the data set is the task's name, and single items are in the record's arrays."""
    return [
        Metric(
            name=metric.name,
            dataset=result.task,
            value=metric.value,
            unit=TASK_UNITS.get(metric.name, "share of items"),
            higher_is_better=metric.higher_is_better,
            n=metric.n,
            stderr=metric.stderr,
        )
        for result in results
        for metric in result.metrics.values()
    ]
