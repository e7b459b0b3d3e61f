"""From the rows that people have to the tokens that a model learns."""
