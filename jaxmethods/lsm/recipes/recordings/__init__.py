"""Speech-text models of a user's own recordings, Whisper and language model."""
