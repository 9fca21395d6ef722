"""What training by scores reports, whatever is scored: how much the pairs of a step tell."""

import math
import warnings
from collections.abc import Sequence

from adazeta.estimation.shaping import ScoreSummary

_PATIENCE, _FEW = 5, 0.1  # steps in a row with a smaller share of informative pairs


class Scores:
    """Looks at the scores of the steps; scores move in jumps, so that pairs may not differ.

    Attributes:
        remedies: what helps where few pairs differ, as the end of a sentence.
    """

    remedies = ""

    def __init__(self) -> None:
        self._poor, self._warned = 0, False

    def note(self, summaries: Sequence[ScoreSummary]) -> None:
        """Look at the scores of a step; warn once if they have said little for some steps."""
        pairs = sum(each.pairs for each in summaries)
        told = sum(each.informative * each.pairs for each in summaries)
        poor = pairs == 0 or told < _FEW * pairs
        self._poor = self._poor + 1 if poor else 0
        if self._poor < _PATIENCE or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"for {_PATIENCE} steps fewer than {_FEW:.0%} of the pairs had different scores, so "
            f"there is hardly anything to learn from: {self.remedies}",
            stacklevel=2,
        )

    def logs(self, summaries: Sequence[ScoreSummary]) -> dict[str, float]:
        """Return the figures of estimates for a log."""
        pairs = sum(each.pairs for each in summaries)
        known = [each for each in summaries if not math.isnan(each.mean)]
        found: dict[str, float] = {}
        if known:
            found["reward"] = sum(each.mean for each in known) / len(known)
            found["reward_std"] = sum(each.spread for each in known) / len(known)
        told = sum(each.informative * each.pairs for each in summaries)
        found["informative_pairs"] = told / pairs if pairs else 0.0
        found["missing_scores"] = sum(each.missing for each in summaries)
        return found
