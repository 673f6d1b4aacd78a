"""Metrics of maps: one file a protocol, each a pure function of maps, inputs and a model."""

from omenn.metrics.metric_registry import Measure, Metric, find, metric, metrics
from omenn.metrics.score import Score

__all__ = ["Measure", "Metric", "Score", "find", "metric", "metrics"]
