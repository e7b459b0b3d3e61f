"""How good a model is: answers, scores and benchmarks on rows that training never saw."""
