"""Reports whose numbers are known, and how they look in a terminal."""

import math
from dataclasses import replace
from io import StringIO

from rich.console import Console

from lightning_linf.report import BlockSmoothness, GeometryReport, NoiseReport

D = 370_944
TENSOR = {"num_params": 64, "one_one_norm_share": 0.25, "density": 0.4, "gini": 0.6}


def block(num_blocks, lower, operator_upper, upper=math.nan, **changes):
    made = BlockSmoothness(num_blocks, lower, operator_upper, upper, 0.0, 0.004, 0.003, 24)
    return replace(made, **{"adaptive_lower": lower, **changes})


# Chosen so that every number below is exact in binary, or divided by hand.
SMOOTHNESS = {"global": block(1, 10, 12.5), "tensor": block(2, 6, 8), "coordinate": block(8, 4, 5)}
DUAL_NORM = {"global": 4.0, "tensor": 3.0, "coordinate": 2.0}


def make_report(smoothness=None, dual_norm=None, **changes):
    made = GeometryReport(
        num_params=8,
        loss=1.5,
        density=0.25,
        one_one_norm=6.0,
        one_one_norm_relative_error=0.1,
        lambda_max=1.25,
        lambda_max_relative_error=0.01,
        dual_norm=dual_norm or DUAL_NORM,
        curvature={name: 2.0 for name in dual_norm or DUAL_NORM},
        smoothness=smoothness or SMOOTHNESS,
        r_squared={"coordinate": 1.0, "tensor": 0.5, "global": 0.0},
        per_tensor={"0.weight": TENSOR},
        noise=None,
        secant=None,
        settings={"mode": "eval", "seed": 0, "tol": 0.01, "chunk": None, "compiled": False},
        num_hvps=72,
        seconds=2.5,
    )
    return replace(made, **changes)


def trained_gpt2(**changes):
    """Make a report with the numbers of a small GPT-2."""
    dual_squared = {"coordinate": 0.14, "row": 0.35, "tensor": 0.62, "global": 1.0}
    made = make_report(
        {
            "coordinate": block(D, 7.8 * D, 9.9 * D, 25.2 * D, upper_relative_error=0.08),
            "row": block(2_953, 12.7 * D, 13.6 * D, 33.8 * D, lower_increase=0.02),
            "tensor": block(28, 24.9 * D, 25.5 * D, 57 * D),
            "global": block(1, 35.7 * D, 35.9 * D, 35.9 * D),
        },
        {name: math.sqrt(value * D / 4) for name, value in dual_squared.items()},
        num_params=D,
        density=0.14,
        one_one_norm=25.2 * D,
        one_one_norm_relative_error=0.08,
        lambda_max=35.7,
        lambda_max_relative_error=0.006,
    )
    return replace(made, **changes)


NOISE = NoiseReport(
    16, 4096.0, 3.1, 0.123, math.inf, {"coordinate": 0.0054 * D, "global": 0.0105 * D}
)


def favouring_adam(tensor=(6, 8), tensor_dual=3.0, global_=(40, 50)):
    """Make a report where, for a dual norm of 4 in both, Adam's decrease is 1.6 to 2."""
    return make_report(
        {"coordinate": block(8, 4, 5), "tensor": block(2, *tensor), "global": block(1, *global_)},
        {"coordinate": 4.0, "tensor": tensor_dual, "global": 4.0},
    )


def full_report():
    secant = dict.fromkeys(("coordinate", "row", "tensor", "global"), 3.21 * D)
    r_squared = {"coordinate": 1.0, "row": 0.61, "tensor": 0.33, "global": 0.0}
    return trained_gpt2(noise=NOISE, secant=secant, r_squared=r_squared)


def plain(renderable, width):
    file = StringIO()
    Console(file=file, width=width, color_system=None).print(renderable)
    return file.getvalue()


def words(text):
    return " ".join(text.split())
