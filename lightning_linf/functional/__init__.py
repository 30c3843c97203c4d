"""Tensors in, tensors out: one quantity a file."""

from lightning_linf.functional.adaptive_smoothness import AdaptiveAscent as AdaptiveAscent
from lightning_linf.functional.adaptive_smoothness import adaptive_ascent as adaptive_ascent
from lightning_linf.functional.batch_excess import batch_excess as batch_excess
from lightning_linf.functional.block_smoothness import (
    BlockSmoothnessEstimate as BlockSmoothnessEstimate,
)
from lightning_linf.functional.block_smoothness import block_cauchy as block_cauchy
from lightning_linf.functional.block_smoothness import block_smoothness as block_smoothness
from lightning_linf.functional.blocks import Blocks as Blocks
from lightning_linf.functional.blocks import LabelledBlocks as LabelledBlocks
from lightning_linf.functional.blocks import block_norm as block_norm
from lightning_linf.functional.blocks import dual_block_norm as dual_block_norm
from lightning_linf.functional.blocks import dual_direction as dual_direction
from lightning_linf.functional.heterogeneity import Heterogeneity as Heterogeneity
from lightning_linf.functional.heterogeneity import heterogeneity as heterogeneity
from lightning_linf.functional.lambda_max import LambdaMax as LambdaMax
from lightning_linf.functional.lambda_max import lambda_max as lambda_max
from lightning_linf.functional.noise import NoiseEstimate as NoiseEstimate
from lightning_linf.functional.noise import noise as noise
from lightning_linf.functional.one_one_norm import OneOneNormEstimate as OneOneNormEstimate
from lightning_linf.functional.one_one_norm import (
    cross_fitted_one_one_norm as cross_fitted_one_one_norm,
)
from lightning_linf.functional.one_one_norm import one_one_norm as one_one_norm
from lightning_linf.functional.one_one_norm import row_norms as row_norms
from lightning_linf.functional.operator_norm import OperatorNorm as OperatorNorm
from lightning_linf.functional.operator_norm import operator_norm as operator_norm
from lightning_linf.functional.r_squared import BetweenWithin as BetweenWithin
from lightning_linf.functional.r_squared import between_within as between_within
from lightning_linf.functional.random import cauchy as cauchy
from lightning_linf.functional.rotation import rotate as rotate
from lightning_linf.functional.rotation import rotate_squared as rotate_squared
from lightning_linf.functional.spectral import MatrixSplit as MatrixSplit
from lightning_linf.functional.spectral import SpectralAscent as SpectralAscent
from lightning_linf.functional.spectral import SpectralDual as SpectralDual
from lightning_linf.functional.spectral import spectral_ascent as spectral_ascent
from lightning_linf.functional.spectral import spectral_dual as spectral_dual
from lightning_linf.functional.spectral import spectral_norm as spectral_norm
from lightning_linf.functional.stability import stability_threshold as stability_threshold
