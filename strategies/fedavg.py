"""Federated averaging over silos, with a round loop of its own.

Flower's loop has no early stop, samples with global randomness, and averages whatever comes.
McMahan et al. 1602.05629.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedkd.distillation.consolidate import Consolidated
from fedkd.distillation.teachers import Teachers
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.validate import RefusedError, read_info, read_num_examples, read_update
from fedkd.models.state import State, copy_state
from fedkd.results.observer import Observer
from fedkd.results.record import Point, Stopped
from fedkd.training.aggregation import aggregate
from fedkd.training.evaluate import evaluate
from fedkd.util.names import natural_key
from fedkd.util.seeding import numpy_generator
from strategies.collect import collect_teachers
from strategies.context import RunContext
from strategies.diagnostics import Beginning, look_at_start
from strategies.exchange import GONE, Ledger, Member, exchange
from strategies.roster import Roster
from strategies.savepoint import CheckpointWriter, SavePoint
from strategies.updates import RoundModels, server_update

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class SiloFedAvg(FedAvg):
    """FedAvg with seeded cohorts, gated replies, silo-ordered sums and an early stop.

    To write a strategy of your own, override ``begin`` (how the global model starts) or
    ``combine`` (how a round's models become one). What the server then does with that one is the
    ``update`` that the arm's ``strategy`` names: see :mod:`strategies.updates`.

    Args:
        context: the arm, its seed and the server's data.
        observer: told of every round.
        run_id: what replies must echo.
        checkpoint_writer: writes the run's state after every round, before ``observer`` is called.
        saved: the state from which to go on; None begins anew.
    """

    def __init__(
        self,
        context: RunContext,
        observer: Observer,
        run_id: str,
        *,
        checkpoint_writer: CheckpointWriter | None = None,
        saved: SavePoint | None = None,
    ) -> None:
        super().__init__(fraction_train=context.rounds.fraction)
        self.context = context
        self.observer = observer
        self.run_id = run_id
        self.ledger = Ledger()
        self.roster = Roster()
        self.curve: list[Point] = []
        self.stopped: Stopped = "budget"
        self.exchanges_before_round_1 = 0
        self.notes: dict[str, object] = {}
        self.teachers: Teachers | None = None
        self.consolidated: Consolidated | None = None
        self.start_state: State = {}
        self.beginning: Beginning | None = None
        self.update = server_update(context)
        self._checkpoint_writer = checkpoint_writer
        self._saved = saved

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
        result = Result()
        if self._saved is not None:
            arrays = self._go_on(grid, self._saved)
        else:
            # The introduction is no exchange, and on Ray it waits for processes to start: untimed.
            self.roster.call(grid, self.context, self.ledger, self.run_id)
            with self.ledger.traffic.timed():
                state = self.begin(grid, initial_arrays)
            self.start_state = state
            self._note_validation()
            self.beginning = look_at_start(self.context, state, self.teachers, self.consolidated)
            arrays = ArrayRecord(state)
            self._measure(grid, 0, arrays, evaluate_fn, result)
        for round_number in range(len(self.curve), num_rounds + 1):
            if self._may_stop():
                break
            self.ledger.open(round_number)
            self.roster.look_again(grid, self.context, self.ledger, self.run_id)
            with self.ledger.traffic.timed():
                config = ConfigRecord(dict(train_config or {}))
                messages = list(self.configure_train(round_number, arrays, config, grid))
                replies = exchange(
                    grid,
                    messages,
                    timeout=timeout,
                    traffic=self.ledger.traffic,
                    simulated=self.context.simulated,
                ).values()
                averaged, metrics = self.aggregate_train(round_number, replies)
            if averaged is None:
                self.stopped = "quorum"
                break
            arrays = averaged
            if metrics is not None:
                result.train_metrics_clientapp[round_number] = metrics
            self._measure(grid, round_number, arrays, evaluate_fn, result)
        else:
            self._may_stop()
        if barred := self.ledger.barred(self.context.rounds.max_failures):
            self.notes["quarantined_after"] = barred
        result.arrays = arrays
        return result

    def _go_on(self, grid: Grid, saved: SavePoint) -> ArrayRecord:
        """Take up a run where it was saved, and return its global model.

        Cohorts are drawn from the silos that the run began with. Those that have not come back
        fail in their rounds, and those that are new to it are not asked.
        """
        self.roster.call(grid, self.context, Ledger(), self.run_id)
        self.roster.keep_to(saved.members)
        self.curve = list(saved.curve)
        self.ledger.quarantined = list(saved.quarantined)
        self.notes = dict(saved.notes)
        self.exchanges_before_round_1 = saved.exchanges_before_round_1
        self.beginning = saved.beginning
        try:
            self.update.load_state_dict(saved.state_dict)
        except ValueError as error:
            raise FedKDError(f"the run's saved state cannot be taken up: {error}") from error
        return ArrayRecord(saved.model)

    def _note_validation(self) -> None:
        """Note how good a consolidated start is on validation data; its seconds do not count."""
        context = self.context
        if self.consolidated is None or not len(context.validation):
            return
        model = context.model("evaluation")
        model.load_state_dict(self.start_state)
        found = evaluate(model, context.validation, compute=context.compute)
        self.notes["validation_accuracy"] = round(found.accuracy, 6)

    def begin(self, grid: Grid, initial_arrays: ArrayRecord) -> State:
        """Return the global model's state before round 1, at the cost of an exchange or none."""
        like = initial_arrays.to_torch_state_dict()
        start = self.context.arm.start
        if start == "random":
            return dict(like)
        context = self.context
        self.teachers = collect_teachers(
            grid, list(self.roster.values()), context, self.ledger, self.run_id
        )
        self.exchanges_before_round_1 = 1
        if start == "average":
            return self.teachers.average(context.arch)
        index = self.teachers.choose_model(start, context.arch, context.validation, context.seed)
        return copy_state(self.teachers.model(index))

    def combine(self, states: Sequence[State], num_examples: Sequence[int]) -> State:
        """Make one model of a round's models, given in natural order of the silos' names."""
        rounds = self.context.rounds
        return aggregate(
            states, [float(n) for n in num_examples], rule=rounds.aggregation, trim=rounds.trim
        )

    def cohort(self, round_number: int) -> list[Member]:
        """Draw the silos of a round, in natural order; at least one.

        Those that are quarantined are drawn too, so that the others' turns do not depend on them;
        they are not asked, and lack when the quorum is counted.
        """
        members = sorted(self.roster.values(), key=lambda member: natural_key(member.name))
        size = max(1, round(self.context.rounds.fraction * len(members)))
        generator = numpy_generator(self.context.seed, "cohort", "", round_number)
        chosen = sorted(generator.permutation(len(members))[:size])
        return [members[index] for index in chosen]

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,  # noqa: ARG002 -- the signature is Flower's
    ) -> Iterable[Message]:
        """Address the global model to the round's cohort."""
        self._cohort = self.cohort(server_round)
        config[keys.ROUND] = server_round
        config[keys.RUN_ID] = self.run_id
        self._expected = arrays.to_torch_state_dict()
        content = RecordDict({keys.ARRAYS: arrays, keys.CONFIG: config})
        return self._address(self._cohort, content, keys.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, average the good ones in silo order, and update the global model.

        Returns:
            The new model, or None where fewer silos than the quorum answered well.
        """
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        states: list[State] = []
        sizes: list[int] = []
        losses: list[float] = []
        for member in self._cohort:
            if self._is_quarantined(member):
                continue
            try:
                reply = by_node.get(member.node_id)
                if reply is None:
                    raise RefusedError(self._why_silent(member))
                state, size, loss = read_update(
                    reply,
                    self._expected,
                    silo=member.name,
                    run_id=self.run_id,
                    round_number=server_round,
                    max_examples=self.context.rounds.max_examples,
                )
            except RefusedError as error:
                self.ledger.refuse(member.name, error)
                continue
            self.ledger.traffic.ok += 1
            states.append(state)
            sizes.append(size)
            losses.append(loss)
        if len(states) < max(1, math.ceil(self.context.rounds.quorum * len(self._cohort))):
            return None, None
        loss = sum(n * x for n, x in zip(sizes, losses, strict=True)) / sum(sizes)
        average = self.combine(states, sizes)
        state = self.update(RoundModels(server_round, self._expected, states, average))
        return ArrayRecord(state), MetricRecord({keys.LOSS: loss})

    def _address(
        self, members: Iterable[Member], content: RecordDict, message_type: str
    ) -> list[Message]:
        """Return a message for every silo that is there and not quarantined.

        Nobody waits for one that is known to be gone; its place in the cohort stays empty.
        """
        return [
            Message(content, member.node_id, message_type)
            for member in members
            if member.node_id in self.roster.connected and not self._is_quarantined(member)
        ]

    def _why_silent(self, member: Member) -> str:
        """Say why there is no reply, and count the silo as gone until the next look."""
        if member.node_id not in self.roster.connected:
            return GONE
        self.roster.connected.discard(member.node_id)
        return "it did not answer in time"

    def _is_quarantined(self, member: Member) -> bool:
        """Whether a silo has failed so often that it is not asked any more."""
        return member.name in self.ledger.barred(self.context.rounds.max_failures)

    def _measure(
        self,
        grid: Grid,
        round_number: int,
        arrays: ArrayRecord,
        evaluate_fn: EvaluateFn | None,
        result: Result,
    ) -> None:
        """Evaluate the global model and add a point to the curve."""
        found = evaluate_fn(round_number, arrays) if evaluate_fn else None
        if found is not None:
            result.evaluate_metrics_serverapp[round_number] = found
        else:
            found = self._ask_silos(grid, round_number, arrays)
            result.evaluate_metrics_clientapp[round_number] = found
        traffic = self.ledger.traffic
        loss, f1 = float(str(found[keys.LOSS])), float(str(found[keys.MACRO_F1]))
        point = Point(
            round=round_number,
            accuracy=float(str(found[keys.ACCURACY])),
            loss=loss if math.isfinite(loss) else None,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            seconds=traffic.seconds,
            silos_ok=traffic.ok,
            silos_failed=traffic.failed,
            macro_f1=f1,
        )
        self.curve.append(point)
        if self._checkpoint_writer is not None:
            # First of all: what anyone has been told of is never computed a second time.
            self._checkpoint_writer.write(self._save_point(arrays))
        self.observer.on_point(point)

    def _save_point(self, arrays: ArrayRecord) -> SavePoint:
        return SavePoint(
            curve=tuple(self.curve),
            model=dict(arrays.to_torch_state_dict()),
            state_dict=self.update.state_dict(),
            members=tuple(self.roster.values()),
            quarantined=tuple(self.ledger.quarantined),
            notes=self.notes,
            exchanges_before_round_1=self.exchanges_before_round_1,
            beginning=self.beginning,
        )

    def _ask_silos(self, grid: Grid, round_number: int, arrays: ArrayRecord) -> MetricRecord:
        """Where the server has no test data: accuracy on the silos', weighted by examples."""
        config = ConfigRecord({keys.ROUND: round_number, keys.RUN_ID: self.run_id})
        content = RecordDict({keys.ARRAYS: arrays, keys.CONFIG: config})
        # One that was gone or silent in this very round has been noted, and is not asked again.
        members = [
            member
            for member in self.roster.values()
            if member.node_id in self.roster.connected and not self._is_quarantined(member)
        ]
        messages = self._address(members, content, keys.EVALUATE)
        replies = exchange(
            grid,
            messages,
            timeout=self.context.rounds.timeout,
            traffic=self.ledger.traffic,
            simulated=self.context.simulated,
        )
        totals = dict.fromkeys((keys.ACCURACY, keys.LOSS, keys.MACRO_F1), 0.0)
        total = 0
        for member in members:
            try:
                if member.node_id not in replies:
                    raise RefusedError(self._why_silent(member))
                reply = replies[member.node_id]
                info = read_info(reply, run_id=self.run_id, round_number=round_number)
                if info.get(keys.SILO) != member.name:
                    raise RefusedError("its reply bears another silo's name")
                record = reply.content.metric_records.get(keys.METRICS)
                size = read_num_examples(record, self.context.rounds.max_examples)
                values = {key: record.get(key) if record else None for key in totals}
                for key, value in values.items():
                    top = sys.float_info.max if key == keys.LOSS else 1.0
                    if not isinstance(value, float) or not 0 <= value <= top:
                        raise RefusedError(f"its {key} is out of range")
                # Only now: a reply that is refused must not have counted in part.
                for key, value in values.items():
                    totals[key] += size * float(str(value))
                total += size
            except RefusedError as error:
                self.ledger.refuse(member.name, error)
        if not total:
            raise FedKDError(
                "no silo could evaluate the global model, and the server has no test data"
            )
        return MetricRecord({key: value / total for key, value in totals.items()})

    def _may_stop(self) -> bool:
        """Whether every target has been reached and the arm stops there."""
        reached = all(
            any(point.accuracy >= target for point in self.curve) for target in self.context.targets
        )
        if reached and self.context.targets and self.context.rounds.stop == "targets":
            self.stopped = "targets"
            return True
        return False


def central_evaluation(context: RunContext) -> EvaluateFn | None:
    """Return a function that measures the global model on the server's test data, if it has any."""
    test = context.test
    if test is None or not len(test):
        return None
    model = context.model("evaluation")

    def measure(_: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        found = evaluate(model, test, compute=context.compute)
        return MetricRecord(
            {
                keys.ACCURACY: found.accuracy,
                keys.LOSS: found.loss,
                keys.MACRO_F1: found.macro_f1,
            }
        )

    return measure


def initial_arrays(context: RunContext) -> ArrayRecord:
    """Return the random model from which every arm of a seed starts or takes its shapes."""
    return ArrayRecord(copy_state(context.model("initial-model")))
