"""What people read of a run afterwards: one page of HTML that tells of it, and the log of each attempt."""
