"""Run the command ``medrefl`` as ``python -m medrefl_utils``."""

from medrefl_utils.runs.cli import main

main()
