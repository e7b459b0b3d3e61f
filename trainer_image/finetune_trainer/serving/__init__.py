"""The small programs around a served model: one loads its weights, one asks it a gate's questions, one drains its pods."""
