"""Networks that methods share, their initial weights, Hugging Face folders in and out."""
