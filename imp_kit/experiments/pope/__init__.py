"""Things that are not there: POPE's questions (arXiv 2305.10355) about drawings."""
