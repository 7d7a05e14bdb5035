"""Global models that a run leaves in its folder besides the final one: ``rounds.keep``."""

from __future__ import annotations

from pathlib import Path

from fedkd.models.card import ModelCard, read_card, save_model
from fedkd.registry import metric_key
from fedkd.results.record import BEST_FILE, model_files
from fedkd.training.evaluate import evaluate_all
from strategies.context import RunContext
from strategies.run_state import RunState


class KeptModels:
    """Writes the model of every ``keep``-th round, and the best on the validation images so far.

    Args:
        folder: the run's.
        context: the run.
    """

    def __init__(self, folder: Path, context: RunContext) -> None:
        self._folder = folder
        self._context = context

    def keep(self, state: RunState) -> None:
        """Write the model of the last round where it is to be kept."""
        every, number = self._context.rounds.keep, state.curve[-1].round
        if every is None:
            return
        if number and number % every == 0:
            self._save(f"round-{number:04}.safetensors", state, {"round": number})
        value, best = self._validate(state), self._folder / BEST_FILE
        if value is None:
            return
        card = read_card(best, what="rounds.keep") if best.exists() else None
        if card is None or value > card.facts["validation"]:
            self._save(BEST_FILE, state, {"round": number, "validation": value})

    def discard(self) -> None:
        """Remove the models of an earlier run in the folder, which begins anew."""
        for path in model_files(self._folder):
            path.unlink()

    def _save(self, name: str, state: RunState, facts: dict[str, float]) -> None:
        context = self._context
        card = ModelCard(context.arch, context.shape, context.classes, facts)
        save_model(self._folder / name, state.model, card)

    def _validate(self, state: RunState) -> float | None:
        """Return the study's metric on the validation images; None where it is not defined."""
        context = self._context
        if not len(context.validation):
            return None
        model = context.model("evaluation")
        model.load_state_dict(state.model)
        metrics = evaluate_all(model, context.validation, compute=context.compute)
        return metrics.values[metric_key(context.study.metric)]
