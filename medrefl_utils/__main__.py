"""``python -m medrefl_utils`` is the command ``medrefl``."""

from medrefl_utils.cli import main

main()
