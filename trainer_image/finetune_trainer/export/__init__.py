"""What is made of a trained model, and the proofs that it answers as the trained one does."""
