"""Sweeps: what to run, how and where it is run, the laws fitted to what came out, and their report."""
