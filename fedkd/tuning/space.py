"""What the search for a start's settings may vary: which keys of a consolidation, over what."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from optuna import Trial

from fedkd.config import Consolidation
from fedkd.registry import METHODS
from fedkd.tuning.ranges import Range

Value = float | int | str

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
LR_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The grid's axes. The paper tunes temperature and weight on a grid; these values are ours."""
EPOCHS = (10, 100)
"""Range of the epochs of a start that does not mix inputs. Ours."""

_SEARCHED = frozenset({"temperature", "weight", "weighting", "pooling"})
"""Keys that are searched if the method uses them, beside learning rate and epochs."""


def searched_keys(own: Consolidation, *, labelled: bool) -> set[str]:
    """Return the keys of a consolidation that have an effect, beside learning rate and epochs.

    Without labels ``weight`` has no effect.
    """
    keys = set(_SEARCHED & set(METHODS.spec(own.method).uses))
    return keys if labelled else keys - {"weight"}


def uses_sgd(settings: object) -> bool:
    """Whether a section on training names SGD, whose learning rates are larger than Adam's."""
    return getattr(settings, "optimizer", "sgd") == "sgd"


def start_ranges(own: Consolidation, *, labelled: bool) -> dict[str, Range]:
    """Return the ranges of the numeric settings of a consolidation, its own values included."""
    # Every interpolation makes an epoch longer by a pass over the transfer set.
    passes = 1 + own.mixed_inputs
    low, high = (max(1, epochs // passes) for epochs in EPOCHS)
    sgd = Range(0.005, 0.5, least=1e-5, most=10.0)
    adaptive = Range(1e-4, 0.01, least=1e-6, most=1.0)
    ranges = {
        "lr": sgd if uses_sgd(own) else adaptive,
        "epochs": Range(low, high, least=1, most=max(high, 400 // passes), kind="int"),
        "temperature": Range(0.5, 20.0, least=0.1, most=100.0),
        "weight": Range.fixed(0.0, 1.0, "share"),
        "familiarity.scale": Range.fixed(1.0, 10.0, "float"),
        "familiarity.dims": Range.fixed(10, 100, "int"),
    }
    used = {"familiarity.scale", "familiarity.dims"}
    if own.epochs:
        used |= {"lr", "epochs"} | searched_keys(own, labelled=labelled)
    point = numeric_point(own)
    return {key: ranges[key].around(point[key]) for key in ranges if key in used}


def numeric_point(own: Consolidation) -> dict[str, float | int]:
    """Return the values of the keys of :func:`start_ranges`."""
    return {
        "lr": own.lr,
        "epochs": own.epochs,
        "temperature": own.temperature,
        "weight": own.weight,
        "familiarity.scale": own.familiarity.effective_scale,
        "familiarity.dims": own.familiarity.effective_dims,
    }


class Space:
    """The keys of one arm's consolidation that a search varies.

    The arm's own settings lie within the space, whatever its bounds. Without labels ``weight``
    has no effect.
    """

    def __init__(self, own: Consolidation, *, labelled: bool, weightings: list[str]) -> None:
        self._own = own
        self._searched = searched_keys(own, labelled=labelled)
        self._ranges = start_ranges(own, labelled=labelled)
        self._weightings = [*weightings, *({own.weighting} - set(weightings))]

    def own_point(self) -> dict[str, Value]:
        """Return the arm's own settings as parameters."""
        own = self._own
        values = numeric_point(own)
        point: dict[str, Value] = {"lr": own.lr, "epochs": own.epochs}
        for key in sorted(self._searched):
            point[key] = getattr(own, key)
        if own.uses_densities and "weighting" in self._searched:
            point["familiarity.density"] = own.familiarity.density
            point |= {key: values[key] for key in ("familiarity.scale", "familiarity.dims")}
        return point

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """Let the sampler choose a point of the whole space.

        Numbers keep three significant digits, which a study file shows; those of the arm itself
        stay what they are.
        """
        point: dict[str, Value] = {
            key: each.suggest(trial, key)
            for key, each in self._ranges.items()
            if not key.startswith("familiarity.")
        }
        if "pooling" in self._searched:
            point["pooling"] = trial.suggest_categorical(
                "pooling", list(dict.fromkeys(["probs", "logits", self._own.pooling]))
            )
        if "weighting" not in self._searched:
            return point
        point["weighting"] = trial.suggest_categorical("weighting", self._weightings)
        if point["weighting"] == "familiarity":
            # Pooled densities need another consent of silos: they are tuned where the arm has them.
            densities = ["pooled"] if self._own.uses_moments else ["gaussian", "knn"]
            point["familiarity.density"] = trial.suggest_categorical(
                "familiarity.density", densities
            )
            for key in ("familiarity.scale", "familiarity.dims"):
                point[key] = self._ranges[key].suggest(trial, key)
        return point

    def suggest_grid(self, trial: Trial) -> dict[str, Value]:
        """Let the sampler choose a point of the grid."""
        points = self.grid_points()
        point: dict[str, Value] = {}
        for key in points[0]:
            choices = sorted({each[key] for each in points})
            point[key] = number(trial.suggest_categorical(key, choices))
        return point

    def grid(self) -> dict[str, tuple[float, ...]]:
        """Return the axes of the grid, 5 x 5: temperature and, where it has an effect, weight.

        Where one of the two has no effect, multiples of the arm's learning rate replace it.
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


def number(value: object) -> float | int:
    """Narrow the type of a value that is a number."""
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is not a number")
    return value
