"""What one measurement of a loss landscape found, as data: its advice, its tables, its JSON."""

from lightning_linf.report.advice import Advice as Advice
from lightning_linf.report.interval import Interval as Interval
from lightning_linf.report.report import BlockSmoothness as BlockSmoothness
from lightning_linf.report.report import GeometryReport as GeometryReport
from lightning_linf.report.report import Noise as Noise
