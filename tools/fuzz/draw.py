"""Random choices for the parts of a program."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Draw(random.Random):
    """Random choices for the parts of a program."""

    def pick(self, items: Sequence[str]) -> str:
        """Return one of the items; the first three together are as likely as the rest."""
        return self.choice(items[:3] if self.random() < 0.5 else items)

    def one_in(self, count: int) -> bool:
        return self.randrange(count) == 0
