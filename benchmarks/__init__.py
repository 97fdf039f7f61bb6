"""Speed beside the peers. `make bench` runs all of it; ratios within one run are what counts, not absolute times."""
