"""Networks that several methods share, their initial weights and Hugging Face folders in and out."""
