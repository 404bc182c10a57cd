"""The static partitions of one GPU: which lane's units are which partition, and what is still to be given back."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from hasfaas.core.errors import BackendError, PlacementError
from hasfaas.devices.mps import MpsControl

log = logging.getLogger("hasfaas.devices")

Units = tuple[int, ...]
_TRIES, _WAIT_S = 5, 0.2


class Partitions:
    """Partitions by the units they stand for. Which chunks they are made of, MPS decides: a lane's units are a number of
    chunks, not places."""

    def __init__(self, control: MpsControl) -> None:
        self._control = control
        self._cut: dict[Units, str] = {}
        self._leftover: list[str] = []

    def __contains__(self, units: Units) -> bool:
        return units in self._cut

    def of(self, units: Units) -> str:
        """The value for CUDA_MPS_SM_PARTITION."""
        return self._cut[units]

    def cut(self, units: Units) -> None:
        """Sets chunks aside. Raises PlacementError when the GPU refuses."""
        if units not in self._cut:
            self.reclaim()
            self._cut[units] = self._control.add_partition(len(units))

    def give_back(self, units: Units) -> None:
        """Removes a partition; one that is still in use, later."""
        if units in self._cut:
            self._leftover.append(self._cut.pop(units))
            self.reclaim()

    def recut(self) -> None:
        """The same partitions of a daemon that is new: the old ones went with the old."""
        self._leftover = []
        self._cut = {units: self._control.add_partition(len(units)) for units in self._cut}

    def forget(self) -> None:
        """The daemon is gone."""
        self._cut, self._leftover = {}, []

    def reclaim(self) -> Sequence[str]:
        """Removes what nobody uses any more; what is left of it. MPS may need a moment to see that a client has ended."""
        for attempt in range(_TRIES):
            self._leftover = [each for each in self._leftover if not self._removed(each)]
            if not self._leftover:
                return ()
            if attempt < _TRIES - 1:
                time.sleep(_WAIT_S)
        log.warning("partitions in use are kept for now: %s", ", ".join(self._leftover))
        return tuple(self._leftover)

    def can_cut_live(self) -> bool:
        """Whether a partition can be made and given back now, while the GPU has a client. NVIDIA's page of
        protocol 3 says that it cannot; that of 2 says nothing."""
        try:
            spare = self._control.add_partition(1)
        except PlacementError as exc:
            log.info("lanes are cut in advance: %s", exc)
            return False
        if self._removed(spare):
            return True
        self._leftover.append(spare)
        return False

    def _removed(self, partition: str) -> bool:
        try:
            self._control.remove_partition(partition)
        except (BackendError, PlacementError) as exc:
            log.debug("%s", exc)
            return False
        return True
