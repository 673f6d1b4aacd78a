"""Error bars: how far a map's sum over a region is from what the logit loses without the region."""

from omenn.calibration.calibrating import calibrate
from omenn.calibration.intervals import Calibration, Interval
from omenn.calibration.regions import Box, Cells, Entries

__all__ = ["Box", "Calibration", "Cells", "Entries", "Interval", "calibrate"]
