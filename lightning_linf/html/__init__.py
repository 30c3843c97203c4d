"""A report of runs as one HTML file, with the panels of the TensorBoard plugin."""
