"""Kill the chain at random moments, run it again, and compare what it made with a run that nothing disturbed."""
