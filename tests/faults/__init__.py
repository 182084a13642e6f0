"""Kill the chain at random moments, run it again, and compare its artifacts with those of an undisturbed run."""
