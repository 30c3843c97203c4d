"""Tensors in, tensors out: one quantity a file."""

from lightning_linf.functional.between_within import BetweenWithin as BetweenWithin
from lightning_linf.functional.between_within import between_within as between_within
from lightning_linf.functional.blocks import Blocks as Blocks
from lightning_linf.functional.blocks import block_norm as block_norm
from lightning_linf.functional.blocks import dual_block_norm as dual_block_norm
from lightning_linf.functional.blocks import dual_direction as dual_direction
from lightning_linf.functional.cross_fit import (
    OneOneNormEstimate as OneOneNormEstimate,
)
from lightning_linf.functional.cross_fit import (
    cross_fitted_one_one_norm as cross_fitted_one_one_norm,
)
from lightning_linf.functional.heterogeneity import Heterogeneity as Heterogeneity
from lightning_linf.functional.heterogeneity import heterogeneity as heterogeneity
from lightning_linf.functional.lambda_max import LambdaMax as LambdaMax
from lightning_linf.functional.lambda_max import lambda_max as lambda_max
from lightning_linf.functional.noise import Noise as Noise
from lightning_linf.functional.noise import noise as noise
from lightning_linf.functional.one_one_norm import one_one_norm as one_one_norm
from lightning_linf.functional.one_one_norm import row_norms as row_norms
from lightning_linf.functional.random import cauchy as cauchy
from lightning_linf.functional.rotation import rotate as rotate
from lightning_linf.functional.rotation import rotate_squared as rotate_squared
