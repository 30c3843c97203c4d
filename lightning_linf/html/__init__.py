"""One HTML file about runs: the report of each in words, and the panels of the TensorBoard tab."""
