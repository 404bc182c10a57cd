"""What the scaler remembers of each function from one tick to the next, as columns."""

from __future__ import annotations

import attrs
import numpy as np

from hasfaas.scaling.forecast import Forecast
from hasfaas.scaling.observation import Array

COLUMNS = ("calm_s", "held", "spare_s", "needed", "regret_s", "idle_s", "log_margin", "settled_s")


@attrs.define(eq=False)
class Memory:
    """All columns are [function], and 0 for one that is new.

    `calm_s`: for how long less quota has sufficed, `held` the greatest quota needed meanwhile. `spare_s`: for how long fewer
    replicas have, `needed` the most of them meanwhile. `regret_s`: device seconds that a better shape would have saved.
    `idle_s`: since the last call. `log_margin`: the logarithm of the safety factor on the rate.
    `settled_s`: for how long all replicas have served.
    """

    names: tuple[str, ...]
    forecast: Forecast
    calm_s: Array
    held: Array
    spare_s: Array
    needed: Array
    regret_s: Array
    idle_s: Array
    log_margin: Array
    settled_s: Array
    # Since replicas were last moved to give a device back.
    since_move_s: float = 0.0

    @classmethod
    def of(cls, names: tuple[str, ...], forecast: Forecast) -> Memory:
        """Nothing is known yet; `forecast` is that of these functions."""
        calm_s, held, spare_s, needed, regret_s, idle_s, log_margin, settled_s = (np.zeros(len(names)) for _ in COLUMNS)
        return cls(names, forecast, calm_s, held, spare_s, needed, regret_s, idle_s, log_margin, settled_s)

    def select(self, names: tuple[str, ...]) -> Memory:
        """The same, for other functions: who is new starts from nothing, who has gone is forgotten."""
        place = {name: row for row, name in enumerate(self.names)}
        rows = np.array([place.get(name, -1) for name in names], int)
        chosen = Memory.of(names, self.forecast.select(rows))
        for column in COLUMNS:
            getattr(chosen, column)[rows >= 0] = getattr(self, column)[rows[rows >= 0]]
        chosen.since_move_s = self.since_move_s
        return chosen
