"""Networks that several methods share, and Hugging Face folders in and out."""
