"""Quantized spaces alignment: what maps every task's states and actions into one space."""
