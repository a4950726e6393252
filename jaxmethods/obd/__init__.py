"""Offline Behavior Distillation."""
