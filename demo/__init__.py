"""`make demo`: from nothing to a served model. Standard library only, as nothing else may be there."""
