"""Global models that a run leaves in its folder besides the final one: ``rounds.keep``."""

from __future__ import annotations

from pathlib import Path

from fedkd.models.card import ModelCard, read_card, save_model
from fedkd.registry import metric_key
from fedkd.results.record import BEST_FILE
from fedkd.training.evaluate import evaluate_all
from strategies.context import RunContext
from strategies.run_state import RunState


def keep_models(folder: Path, context: RunContext, state: RunState) -> None:
    """Write the model of every ``keep``-th round, and the best on the validation examples so far.

    Args:
        folder: the run's.
        context: the run.
        state: after its last round.
    """
    every, number, validation = context.rounds.keep, state.curve[-1].round, context.validation
    if every is None:
        return

    def save(name: str, facts: dict[str, float]) -> None:
        card = ModelCard(
            context.arch, context.shape, context.classes, facts, columns=context.encoder
        )
        save_model(folder / name, state.model, card)

    if number and number % every == 0:
        save(f"round-{number:04}.safetensors", {"round": number})
    if len(validation):
        model, best = context.model("evaluation"), folder / BEST_FILE
        model.load_state_dict(state.model)
        metrics = evaluate_all(model, validation, compute=context.compute)
        value = metrics.values[metric_key(context.study.metric)]
        card = read_card(best, what="rounds.keep") if best.exists() else None
        if value is not None and (card is None or value > card.facts["validation"]):
            save(BEST_FILE, {"round": number, "validation": value})
