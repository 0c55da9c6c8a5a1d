"""What a trained model is worth: held-out loss, and examples to look at."""
