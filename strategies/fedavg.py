"""Federated averaging over silos, with a round loop of its own.

Flower's loop has no early stop, samples with global randomness, and averages whatever comes.
McMahan et al. 1602.05629.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedkd.distillation.consolidate import join_notes
from fedkd.errors import FedKDError
from fedkd.messages import keys, train
from fedkd.messages.evaluate import read_metrics
from fedkd.models.spool import StateSpool
from fedkd.models.state import State, copy_state
from fedkd.registry import STARTS, STRATEGIES
from fedkd.results.observer import Observer
from fedkd.results.record import Point
from fedkd.training.aggregation import aggregate
from fedkd.training.batch_norm import recalibrate
from fedkd.util.names import natural_key
from fedkd.util.seeding import numpy_generator
from strategies.context import RunContext
from strategies.diagnostics import predict_baseline
from strategies.evaluation import EvaluateFn, ask_silos, end_run, targets_reached
from strategies.exchange import Ledger
from strategies.introductions import gather, look_again
from strategies.local_batch_norm import LocalBatchNorm
from strategies.models_of_round import collect_models
from strategies.roster import Member
from strategies.run_state import RunState, Start
from strategies.savepoint import CheckpointWriter
from strategies.session import Session
from strategies.start_checks import check_start, find_unread, validate
from strategies.updates import RoundModels, ServerUpdate, server_update


class SiloFedAvg(FedAvg):
    """FedAvg with seeded cohorts, checked replies, silo-ordered sums and an early stop.

    To write a strategy of your own, override ``begin`` (how the global model starts) or
    ``combine`` (how a round's models become one). What the server then does with that one is the
    ``update``. Flower's hooks for messages are not called: the loop asks by a :class:`Session`.

    Args:
        context: the arm, its seed and the server's data.
        observer: receives every round.
        run_id: what replies must echo.
        checkpoint_writer: writes the run's state after every round, before ``observer`` is called.
        state: the state to resume from; None starts a new run.
        update: takes the place of the update that the arm's ``strategy`` names.
    """

    def __init__(
        self,
        context: RunContext,
        observer: Observer,
        run_id: str,
        *,
        checkpoint_writer: CheckpointWriter | None = None,
        state: RunState | None = None,
        update: ServerUpdate | None = None,
    ) -> None:
        super().__init__(fraction_train=context.rounds.fraction)
        self.context = context
        self.observer = observer
        self.run_id = run_id
        self.update = update or server_update(context)
        self._checkpoint_writer = checkpoint_writer
        self._folder = checkpoint_writer.folder if checkpoint_writer else None
        self.state = state or RunState(self._folder)
        self._local = LocalBatchNorm(context, self.state.batch_norm)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,  # noqa: ARG002 -- the signature is Flower's
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the federation: the start, then rounds until the targets or the budget.

        Raises:
            FedKDError: too few silos answered to begin.
        """
        state, result = self.state, Result()
        ledger = Ledger(traffic=state.spent, quarantined=state.quarantined)
        session = Session(grid, self.context, self.observer, self.run_id, timeout, ledger)
        initial: State = {} if state.curve else dict(initial_arrays.to_torch_state_dict())
        del initial_arrays  # a large model must not stay in memory beside the global one
        if state.curve:
            self._resume(session)
        else:
            self._begin(session, initial)
        del initial
        if not state.curve:
            self._measure(session, evaluate_fn, result)
        for number in range(len(state.curve), num_rounds + 1):
            if targets_reached(self.context, state.curve):
                break
            ledger.open(number)
            look_again(session)
            with ledger.traffic.timed():
                is_quorum = self._round(session, train_config, result)
            if not is_quorum:
                state.stopped = "quorum"
                break
            self._measure(session, evaluate_fn, result)
        if targets_reached(self.context, state.curve):
            state.stopped = "targets"
        if barred := ledger.barred(self.context.rounds.max_failures):
            state.notes["quarantined_after"] = barred
        end_run(session, state)
        result.arrays = ArrayRecord(state.model)
        return result

    def begin(self, session: Session, initial: State) -> Start:
        """Return the global model before round 1, with what it cost: the arm's ``start``."""
        start: Start = STARTS.call(self.context.arm.start, session, initial)
        return start

    def combine(self, states: Sequence[State], num_examples: Sequence[int]) -> State:
        """Make one model of a round's models, given in natural order of the silos' names.

        A mean takes one after another, so that few are in memory. The other rules need a tensor of
        all silos at a time.
        """
        rounds = self.context.rounds
        return aggregate(
            states, [float(n) for n in num_examples], rule=rounds.aggregation, trim=rounds.trim
        )

    def cohort(self, members: Sequence[Member], number: int) -> list[Member]:
        """Draw the silos of a round, in natural order; at least one.

        Those that are quarantined are drawn too, so that the others' turns do not depend on them;
        they are not asked, and count as missing for the quorum.

        Args:
            members: all silos.
            number: the round.
        """
        members = sorted(members, key=lambda member: natural_key(member.name))
        size = max(1, round(self.context.rounds.fraction * len(members)))
        generator = numpy_generator(self.context.seed, "cohort", "", number)
        return [members[i] for i in sorted(generator.permutation(len(members))[:size])]

    def _begin(self, session: Session, initial: State) -> None:
        """Make the global model before round 1."""
        # The introduction is no exchange, and on Ray it waits for processes to start: untimed.
        gather(session)
        with session.ledger.traffic.timed(), self._naming_own_class():
            start = self.begin(session, initial)
        check_start(start, session, initial)
        state = self.state
        state.model = start.state
        shared_sums = self.context.study.statistics_exchanges
        state.exchanges_before_round_1 = start.exchanges + shared_sums
        notes = join_notes(dict(start.notes), find_unread(self.context))
        state.notes |= {**notes, **validate(start, self.context)}
        state.baseline = predict_baseline(self.context, start)

    def _resume(self, session: Session) -> None:
        """Take up a run where it was saved.

        Cohorts are drawn from the silos that the run began with. Those that have not come back
        fail in their rounds, and those that are new to it are not asked.
        """
        gather(replace(session, ledger=Ledger()))
        session.roster.keep_to(self.state.members)
        try:
            self.update.load_state_dict(self.state.update)
        except ValueError as error:
            raise FedKDError(f"the run's saved state cannot be restored: {error}") from error

    def _round(self, session: Session, config: ConfigRecord | None, result: Result) -> bool:
        """Make the next global model; return whether as many silos answer well as the quorum."""
        with StateSpool(self._folder) as states:
            trained = self._train(session, config, states)
            if trained:
                self._aggregate(session.ledger.round, states, trained, result)
            return bool(trained)

    def _train(
        self,
        session: Session,
        config: ConfigRecord | None,
        states: StateSpool,
    ) -> list[tuple[int, float]]:
        """Have the round's cohort train.

        Returns:
            Number of examples and loss of each model in ``states``, in natural order of silos;
            nothing where fewer answer well than the quorum.
        """
        number, rounds = session.ledger.round, self.context.rounds
        cohort = self.cohort(session.members, number)
        members = [member for member in cohort if not session.is_barred(member)]
        arrays = ArrayRecord(self.state.model)
        question = train.write_question(number, arrays, dict(config or {}))
        own = self._local.arrays_of([member.name for member in members], self.state.model)
        trained = collect_models(session, members, question, self.state.model, states, own)
        self._local.keep(list(trained), states)
        is_quorum = len(trained) >= max(1, math.ceil(rounds.quorum * len(cohort)))
        return list(trained.values()) if is_quorum else []

    def _aggregate(
        self,
        number: int,
        states: Sequence[State],
        trained: Sequence[tuple[int, float]],
        result: Result,
    ) -> None:
        """Average the round's models, and update the global model."""
        sizes = [size for size, _ in trained]
        with self._naming_own_class():
            average = self.combine(states, sizes)
        sent = self.state.model
        updated = self.update(RoundModels(number, sent, states, average))
        self.state.model = self._recalibrate(updated)
        loss = sum(size * loss for size, loss in trained) / sum(sizes)
        result.train_metrics_clientapp[number] = MetricRecord({keys.LOSS: loss})

    def _recalibrate(self, state: State) -> State:
        """Return the global model, with new BatchNorm statistics if the study asks for them."""
        context, images = self.context, self.context.recalibrate_on
        if images is None:
            return state
        return recalibrate(state, context.arch, context.shape, images, context.compute)

    def _measure(
        self,
        session: Session,
        evaluate_fn: EvaluateFn | None,
        result: Result,
    ) -> None:
        """Evaluate the global model, add a point to the curve, and save the run's state."""
        state, traffic, number = self.state, session.ledger.traffic, session.ledger.round
        record = evaluate_fn(number, ArrayRecord(state.model)) if evaluate_fn else None
        if record is not None:
            result.evaluate_metrics_serverapp[number] = record
        else:
            own = self._local.arrays_of([member.name for member in session.members], state.model)
            record, withheld = ask_silos(session, number, state.model, own)
            if withheld:
                state.notes["metric_without"] = withheld
            result.evaluate_metrics_clientapp[number] = record
        metrics = read_metrics(record)
        point = Point(
            round=number,
            accuracy=metrics.accuracy,
            loss=metrics.loss if math.isfinite(metrics.loss) else None,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            seconds=traffic.seconds,
            silos_ok=len(traffic.used),
            silos_failed=traffic.failed,
            macro_f1=metrics.macro_f1,
            metrics=dict(metrics.values),
        )
        state.curve.append(point)
        state.note_silos(traffic, deployed=self.context.study.is_deployed)
        state.members = tuple(session.members)
        if self._checkpoint_writer is not None:
            # Saved first, so that a round that anyone has seen is never computed again.
            state.update = self.update.state_dict()
            self._checkpoint_writer.write(state)
        self.observer.on_point(point)

    def _naming_own_class(self) -> AbstractContextManager[None]:
        """Name a derived class of the user's own in what its hooks raise."""
        if type(self).__module__.startswith("strategies."):
            return nullcontext()
        return STRATEGIES.calling(self.context.arm.strategy)


def initial_arrays(context: RunContext) -> ArrayRecord:
    """Return the random model from which every arm of a seed starts or takes its shapes."""
    return ArrayRecord(copy_state(context.model("initial-model")), keep_input=False)
