"""What the first batches of a run have shown of cheap ways to its losses.

They decide estimates to come, by rounding at the least, so they belong to the state of the run: the
estimator carries them in its ``state_dict``, and whoever computes the losses
(:class:`adazeta.forward.batch_losses.BatchLosses`) is handed them, reads and adds to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Findings:
    """Findings of a run, or of its earlier part.

    Attributes:
        packs: whether losses can be computed without padding (:mod:`adazeta.forward.packing`);
            None before a batch has shown it.
        shortcuts: whether other shortcuts (:mod:`adazeta.forward.shortcuts`) equal the plain way,
            by name.
    """

    packs: bool | None = None
    shortcuts: dict[str, bool] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the findings as logs and checkpoints have them."""
        # Logs of versions without shortcuts hold digests of a state without them.
        found = dict(sorted(self.shortcuts.items()))
        return {"packs": self.packs, **({"shortcuts": found} if found else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; other entries of the state are left alone."""
        self.packs = state.get("packs")
        self.shortcuts = dict(state.get("shortcuts", {}))
