"""One page of HTML that tells of a run: what was asked, what was learned from, what came out, and what was proven."""
