"""TensorBoard's tab GEOMETRY, which needs neither torch nor lightning where it runs."""
