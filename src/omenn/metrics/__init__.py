"""Judging maps: one file a protocol, each a pure function of maps, pictures and a model."""

from omenn.metrics.keep_remove import METRICS, KeepRemove, Metric, blurred, keep_remove

__all__ = ["METRICS", "KeepRemove", "Metric", "blurred", "keep_remove"]
