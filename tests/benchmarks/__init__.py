"""Measure this project beside the libraries one would use instead: ``make bench``. CI does not run these."""
