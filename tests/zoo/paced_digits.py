"""The digits set-up, slowed down as a file says at that moment, so that tests can interfere."""

import time
from pathlib import Path

from estimate.digits.task import DigitsTask


class PacedDigits(DigitsTask):
    """DigitsTask that sleeps the seconds in the file ``pace`` before each batch of four rows."""

    rows_per_batch = 4

    def __init__(self, model_path: str, pace: str) -> None:
        super().__init__(model_path)
        self.pace = Path(pace)

    def rows(self, indices, masks):
        time.sleep(float(self.pace.read_text()))
        return super().rows(indices, masks)
