"""How the ranks of one training are started, meet, and share the weights."""
