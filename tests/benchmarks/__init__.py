"""Side-by-side measurements against what one would use instead: ``make bench``. Not tests; CI does not run them."""
