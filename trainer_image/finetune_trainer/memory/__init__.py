"""How much memory training takes, and the settings that fit. No torch: operator, command line and trainer ask alike."""
