"""Kernels: each family's computation and schedule side by side, and the rule that picks one."""
