"""Faster ways to compute what transformers computes, where a machine allows them."""
