"""What keeps a measurement, and a recorder for loops without a Trainer."""

from lightning_linf.recorder.recorder import GeometryRecorder as GeometryRecorder
