"""What one measurement of a loss landscape found, as data: its verdict, its text, its JSON."""

from lightning_linf.report.edge import EdgeReport as EdgeReport
from lightning_linf.report.edge import StepReport as StepReport
from lightning_linf.report.interval import Interval as Interval
from lightning_linf.report.measurement import BlockSmoothness as BlockSmoothness
from lightning_linf.report.measurement import NoiseReport as NoiseReport
from lightning_linf.report.measurement import SpectralSmoothness as SpectralSmoothness
from lightning_linf.report.report import GeometryReport as GeometryReport
from lightning_linf.report.report import text_of as text_of
from lightning_linf.report.step_line import Estimated as Estimated
from lightning_linf.report.step_line import StepLineReport as StepLineReport
from lightning_linf.report.text import ReportText as ReportText
from lightning_linf.report.verdict import Verdict as Verdict
