"""``python -m medrefl_utils`` is the command ``medrefl``."""

from medrefl_utils.runs.cli import main

main()
