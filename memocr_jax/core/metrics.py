"""Metrics as sums with their denominators: exact whatever the batching, padding or number of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from typing import SupportsFloat


@dataclasses.dataclass
class WeightedMean:
    """A mean kept as (weighted sum, weight); merged by addition, divided once."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: SupportsFloat, weight: SupportsFloat = 1.0) -> None:
        """Add `value`, a mean over `weight` items."""
        self.total += float(value) * float(weight)
        self.weight += float(weight)

    @property
    def mean(self) -> float | None:
        """The mean, or None when nothing was added: an empty mean is not zero."""
        return self.total / self.weight if self.weight else None


class Metrics:
    """Named means and counts of one step; names are `stage/name`."""

    def __init__(self) -> None:
        self._means: dict[str, WeightedMean] = {}
        self._counts: dict[str, float] = {}

    def mean(
        self, name: str, values: SupportsFloat | Iterable[SupportsFloat], weight: SupportsFloat = 1.0
    ) -> None:
        """Add one value (of `weight` items) or several values to the mean `name`."""
        mean = self._means.setdefault(name, WeightedMean())
        if isinstance(values, Iterable):
            for value in values:
                mean.add(value)
        else:
            mean.add(values, weight)

    def add_sum(self, name: str, total: SupportsFloat, weight: SupportsFloat) -> None:
        """Add a sum over `weight` items to the mean `name`."""
        mean = self._means.setdefault(name, WeightedMean())
        mean.total += float(total)
        mean.weight += float(weight)

    def count(self, name: str, n: float = 1) -> None:
        """Add `n` to the count `name`; counting 0 makes the name appear."""
        self._counts[name] = self._counts.get(name, 0) + n

    def parts(self) -> dict[str, dict]:
        """Sums, weights and counts as plain values, which another process can merge."""
        return {
            "means": {name: [mean.total, mean.weight] for name, mean in self._means.items()},
            "counts": dict(self._counts),
        }

    @classmethod
    def merged(cls, everyone: Iterable[dict[str, dict]]) -> Metrics:
        """The metrics of all processes, from the `parts` of each."""
        merged = cls()
        for parts in everyone:
            for name, (total, weight) in parts["means"].items():
                merged.add_sum(name, total, weight)
            for name, n in parts["counts"].items():
                merged.count(name, n)
        return merged

    def as_dict(self) -> dict[str, float | None]:
        """Every metric by name, sorted; a mean over nothing, or not finite, is None (JSON null)."""
        means = {name: mean.mean for name, mean in self._means.items()}
        merged = {**means, **self._counts}
        return {k: (None if v is None or not math.isfinite(v) else v) for k, v in sorted(merged.items())}


class Stopwatch:
    """Seconds spent in named stages, summed until they are taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call, and start again from zero."""
        seconds, self._seconds = self._seconds, {}
        return seconds
