"""Errors, devices, processes, signals, memory and what command lines share."""
