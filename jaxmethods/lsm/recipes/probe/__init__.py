"""`method: speech_probe`: what a frozen encoder knows, by linear probes and a small answerer."""
