"""Counts for Prometheus, in its text format."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How many values were at most each of `bounds`, how many there were, and their sum."""

    def __init__(self, name: str, told: str, bounds: Sequence[float]) -> None:
        self.name, self.told, self.bounds = name, told, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self) -> list[str]:
        lines, so_far = [f"# HELP {self.name} {self.told}", f"# TYPE {self.name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            so_far += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{self.name}_sum {self.sum:.6f}", f"{self.name}_count {so_far}"]


class Metrics:
    """What the server has done since it started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.in_flight = 0
        self.seconds = Histogram("mnist_lightning_request_seconds", "Time from a request to its answer.", _SECONDS)
        self.images = Histogram("mnist_lightning_batch_images", "Images of each forward.", _IMAGES)

    def text(self) -> str:
        name = "mnist_lightning_requests_total"
        lines = [f"# HELP {name} Requests answered.", f"# TYPE {name} counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'{name}{{path="{path}",status="{status}"}} {count}')
        name = "mnist_lightning_requests_in_flight"
        lines += [f"# HELP {name} Requests under way.", f"# TYPE {name} gauge", f"{name} {self.in_flight}"]
        return "\n".join([*lines, *self.seconds.lines(), *self.images.lines()]) + "\n"
