<<<<<<< HEAD
"""Networks that several methods share, and Hugging Face folders in and out."""
=======
"""Networks, their initial weights and the checkpoints they are read from."""
>>>>>>> main
