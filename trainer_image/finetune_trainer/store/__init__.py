"""The artifact store: the record of what every step of a run made."""
