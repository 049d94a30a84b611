"""Errors, devices, processes, signals, memory and shared command-line code."""
