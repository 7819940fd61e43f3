"""The digits set-up, slowed down as a file says at that moment, so that tests can interfere."""

import os
import time
from pathlib import Path

from estimate.digits.task import DigitsTask


class PacedDigits(DigitsTask):
    """DigitsTask that sleeps the seconds in the file ``pace`` before each batch of four rows.

    While that file says ``hold`` it waits, and says so by a file ``waiting.<pid>`` beside it.
    """

    rows_per_batch = 4

    def __init__(self, model_path: str, pace: str) -> None:
        super().__init__(model_path)
        self.pace = Path(pace)

    def rows(self, indices, masks):
        # Empty for the moment in which the test writes it anew.
        while (pace := self.pace.read_text()) in ("hold", ""):
            self.pace.with_name(f"waiting.{os.getpid()}").touch()
            time.sleep(0.05)
        time.sleep(float(pace))
        return super().rows(indices, masks)
