"""FedKD: consolidate the silos' pre-trained models by distillation, then the very same rounds."""

from __future__ import annotations

from fedkd.distillation.consolidate import Consolidated
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.teachers import Teachers
from fedkd.models.state import State
from strategies.fedavg import SiloFedAvg
from strategies.run_state import Start
from strategies.session import Session
from strategies.starts import consolidated, distil_on_server


class FedKD(SiloFedAvg):
    """One or two exchanges collect teachers and a student learns from them; then FedAvg rounds.

    Alballa et al. 2402.14922. Subclass and override ``consolidate`` for another way from teachers
    to a student.
    """

    def begin(self, session: Session, initial: State) -> Start:
        """Consolidate the silos' models into the global model."""
        return consolidated(session, initial, self.consolidate)

    def consolidate(
        self, session: Session, teachers: Teachers, basis: Basis | None
    ) -> Consolidated:
        """Make one student of the teachers, on the server's transfer set."""
        return distil_on_server(session, teachers, basis)
