"""Start from the coordinate-wise median of the silos' models, which bears a few bad ones.

In a study:

    median: {start: "median_start:median"}
"""

from __future__ import annotations

from fedkd.models.state import State
from fedkd.training.aggregation import aggregate
from strategies.collect import collect_teachers
from strategies.run_state import Start
from strategies.session import Session


def median(session: Session, initial: State) -> Start:  # noqa: ARG001 -- starts have one signature
    """Return the median of the models that have the architecture of the global one."""
    teachers = collect_teachers(session)
    states = [
        teacher.state
        for teacher in teachers.members
        if teacher.arch == session.context.arch and teacher.state is not None
    ]
    if not states:
        raise ValueError(f"no silo has a model of the architecture {session.context.arch}")
    state = aggregate(states, [1.0] * len(states), rule="median", trim=0.0)
    return Start(state, exchanges=1, notes={"models": len(states)}, teachers=teachers)
