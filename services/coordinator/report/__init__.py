"""Reports of iterations and runs. What each figure is: `docs/reports.md`."""

from services.coordinator.report.build import build

__all__ = ["build"]
