"""What happens between a loaded model and its last checkpoint."""
