"""Optimizers compared on equal terms: the runs, and the tables, figures and sentences."""
