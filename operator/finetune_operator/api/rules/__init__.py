"""What must hold between the fields of a spec: CEL rules for the API server, each with its sentence."""
