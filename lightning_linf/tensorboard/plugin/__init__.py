"""TensorBoard's tab "Geometry". It imports neither torch nor lightning."""

from lightning_linf.tensorboard.plugin.loader import GeometryLoader as GeometryLoader
