"""FedDF: the average of a round is distilled from its models, on the server's transfer set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.errors import FedKDError, UserError
from fedkd.models.state import State, copy_state, is_finite
from fedkd.training.aggregation import reduce
from fedkd.training.evaluate import predict
from fedkd.training.loop import fit, floats_of
from fedkd.training.losses import kl_divergence
from fedkd.training.optimizer import OptimizerSettings
from fedkd.util.seeding import torch_generator
from strategies.context import RunContext
from strategies.updates import RoundModels, ServerUpdate


class FedDF(ServerUpdate):
    """Ensemble distillation after averaging: Lin et al. 2006.07242, algorithm 1.

    The target is the softmax of the plain mean of the models' logits (AVGLOGITS), whatever their
    silos' sizes. The loss is KL(target || softmax(z / T)), without the factor T^2 of other
    distillation, as in the paper's code. Labels are not used. The paper distils by Adam with
    annealing; here it is SGD with the settings of ``fusion``, our choice. Under a robust
    ``rounds.aggregation`` the same rule takes the place of the mean over logits.

    Args:
        context: the run.

    Raises:
        UserError: the server holds no transfer set.
    """

    def __init__(self, context: RunContext) -> None:
        if context.transfer is None:
            raise UserError(
                f"arms.{context.arm_name}.strategy: feddf distils on the server, which holds no "
                "transfer set; give it one by data.transfer, or use another strategy"
            )
        self._context = context
        self._transfer = context.transfer
        self._model = context.model("server-update")

    def __call__(self, models: RoundModels) -> State:
        """Return the average after distillation from the round's models.

        Raises:
            FedKDError: the distillation diverged.
        """
        context, settings = self._context, self._context.arm.fusion
        target = self._target(models.trained)

        def loss(logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
            return kl_divergence(logits, batch[0], temperature=settings.temperature)

        self._model.load_state_dict(models.average)
        fit(
            self._model,
            floats_of(self._model, self._transfer.images),
            (target,),
            loss,
            optimizer=OptimizerSettings(
                settings.epochs, settings.batch_size, settings.lr, settings.momentum
            ),
            generator=torch_generator(context.seed, "feddf", round_number=models.number),
            compute=context.compute,
        )
        state = copy_state(self._model)
        if not is_finite(state, models.average):
            raise FedKDError(
                f"arms.{context.arm_name}: the distillation of round {models.number} diverged; "
                f"lower fusion.lr (now {settings.lr:g}) or rounds.lr (now {context.rounds.lr:g})"
            )
        return state

    def _target(self, trained: Sequence[State]) -> Tensor:
        """Return the ensemble's probabilities at the study's temperature, fp32 ``[N, C]``."""
        rounds, temperature = self._context.rounds, self._context.arm.fusion.temperature
        if rounds.aggregation != "mean":
            logits = torch.stack([self._logits(state) for state in trained])
            middle = reduce(logits, rounds.aggregation, rounds.trim)
            return torch.softmax(middle / temperature, dim=1).float()
        total: Tensor | None = None
        for state in trained:
            logits = self._logits(state)
            total = logits if total is None else total + logits
        if total is None:
            raise ValueError("a round without models has no ensemble")
        mean = total / len(trained)
        return torch.softmax(mean / temperature, dim=1).float()

    def _logits(self, state: State) -> Tensor:
        """Return a model's logits on the transfer set, float64 ``[N, C]``."""
        self._model.load_state_dict(state)
        images = self._transfer.images
        return predict(self._model, images, compute=self._context.compute).double()
