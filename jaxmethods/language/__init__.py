"""What language models are trained with: losses of next tokens and divergences between models."""
