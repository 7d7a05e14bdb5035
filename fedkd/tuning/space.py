"""What a search may vary: which keys of a consolidation, over which values."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

from fedkd.config import Consolidation
from fedkd.registry import METHODS

if TYPE_CHECKING:
    from optuna import Trial

Value = float | int | str

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
LR_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The grid's axes. The paper tunes temperature and weight on a grid; these values are ours."""

_SEARCHED = frozenset({"temperature", "weight", "weighting", "pooling"})
"""Keys that are searched if the method uses them, beside learning rate and epochs."""


class Space:
    """The keys of one arm's consolidation that a search varies.

    Args:
        own: the arm's settings. They lie within the space, whatever its bounds.
        labelled: whether the transfer set has labels; without, ``weight`` has no effect.
        weightings: those that can be tried.
    """

    def __init__(self, own: Consolidation, *, labelled: bool, weightings: list[str]) -> None:
        self._own = own
        self._searched = _SEARCHED & set(METHODS.spec(own.method).uses)
        if not labelled:
            self._searched -= {"weight"}
        self._weightings = [*weightings, *({own.weighting} - set(weightings))]

    def own_point(self) -> dict[str, Value]:
        """Return the arm's own settings as parameters."""
        own, asked = self._own, self._own.familiarity
        point: dict[str, Value] = {"lr": own.lr, "epochs": own.epochs}
        for key in sorted(self._searched):
            point[key] = getattr(own, key)
        if own.uses_densities and "weighting" in self._searched:
            point["familiarity.density"] = asked.density
            point["familiarity.scale"] = asked.effective_scale
            point["familiarity.dims"] = asked.effective_dims
        return point

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """Let the sampler choose a point of the whole space.

        Numbers keep three significant digits, which a study file shows; those of the arm itself
        stay what they are.
        """
        own, asked = self._own, self._own.familiarity
        # Every blend makes an epoch longer by a pass over the transfer set.
        passes = 1 + own.mixed_inputs
        least, most = max(1, 10 // passes), max(1, 100 // passes)
        point: dict[str, Value] = {
            "lr": _between(trial, "lr", 0.005, 0.5, own.lr),
            "epochs": _count(trial, "epochs", least, most, own.epochs),
        }
        if "temperature" in self._searched:
            point["temperature"] = _between(trial, "temperature", 0.5, 20, own.temperature)
        if "weight" in self._searched:
            point["weight"] = _short(trial.suggest_float("weight", 0, 1), own.weight)
        if "pooling" in self._searched:
            point["pooling"] = trial.suggest_categorical(
                "pooling", list(dict.fromkeys(["probs", "logits", own.pooling]))
            )
        if "weighting" not in self._searched:
            return point
        point["weighting"] = trial.suggest_categorical("weighting", self._weightings)
        if point["weighting"] == "familiarity":
            # Pooled densities ask silos for another consent: they are tuned where the arm has them.
            densities = ["pooled"] if own.uses_moments else ["gaussian", "knn"]
            point["familiarity.density"] = trial.suggest_categorical(
                "familiarity.density", densities
            )
            scale, dims = asked.effective_scale, asked.effective_dims
            point["familiarity.scale"] = _between(trial, "familiarity.scale", 1, 10, scale)
            point["familiarity.dims"] = _count(trial, "familiarity.dims", 10, 100, dims)
        return point

    def suggest_grid(self, trial: Trial) -> dict[str, Value]:
        """Let the sampler choose a point of the grid."""
        points = self.grid_points()
        point: dict[str, Value] = {}
        for key in points[0]:
            choices = sorted({each[key] for each in points})
            point[key] = _number(trial.suggest_categorical(key, choices))
        return point

    def grid(self) -> dict[str, tuple[float, ...]]:
        """Return the axes of the grid, 5 x 5: temperature and, where it counts, weight.

        Where one of the two has no effect, multiples of the arm's learning rate stand for it.
        """
        axes: dict[str, tuple[float, ...]] = {}
        if "temperature" in self._searched:
            axes["temperature"] = TEMPERATURES
        if "weight" in self._searched:
            axes["weight"] = WEIGHTS
        if len(axes) < 2:
            axes["lr"] = tuple(float(f"{factor * self._own.lr:.6g}") for factor in LR_FACTORS)
        return axes

    def grid_points(self) -> list[dict[str, float]]:
        """Return the arm's own point, then the grid's others in order."""
        axes = self.grid()
        own: dict[str, float] = {key: getattr(self._own, key) for key in axes}
        points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
        return [own, *(point for point in points if point != own)]

    def settings(self, point: Mapping[str, Value]) -> Consolidation:
        """Return the arm's consolidation with a point's values in place of its own."""
        data = self._own.model_dump()
        for key, value in point.items():
            section, _, leaf = key.rpartition(".")
            (data[section] if section else data)[leaf] = value
        return Consolidation.model_validate(data)


def _between(trial: Trial, name: str, low: float, high: float, own: float) -> float:
    value = trial.suggest_float(name, min(low, own), max(high, own), log=True)
    return _short(value, own)


def _count(trial: Trial, name: str, low: int, high: int, own: int) -> int:
    return trial.suggest_int(name, min(low, own), max(high, own), log=True)


def _number(value: object) -> float:
    """Narrow a choice's type: those of the grid are numbers."""
    if not isinstance(value, float):
        raise TypeError(f"{value!r} is no number of the grid")
    return value


def _short(value: float, own: float) -> float:
    return value if value == own else float(f"{value:.3g}")
