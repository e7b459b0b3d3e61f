"""The base model in memory: loaded by method and precision, with adapters where asked for."""
