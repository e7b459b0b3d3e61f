"""The two kinds as types, the rules that hold their fields together, and the CRDs that are generated from both."""
