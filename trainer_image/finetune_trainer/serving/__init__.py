"""The small programs around a served model: one loads its weights, one asks it the questions of a gate."""
