"""Reports of iterations and runs. What each figure is: `docs/reports.md`."""
