"""Earth observation: sensors and their bands, normalization, generated scenes."""
