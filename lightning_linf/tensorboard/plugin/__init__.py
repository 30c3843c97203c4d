"""TensorBoard's tab "Geometry". It imports neither torch nor lightning."""
