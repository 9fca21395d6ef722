"""The fused ops, and the import name of the folder they live in.

A checkout keeps them in ``kernels/`` beside this package, a wheel in ``adazeta/kernels/``; both
are imported as ``adazeta.kernels``. Needs torch; triton is loaded when a tensor calls for it.
"""

from pathlib import Path

_package = Path(__file__).resolve().with_suffix("")
__path__ = [str(_package if _package.is_dir() else _package.parents[1] / "kernels")]

from adazeta.kernels.dispatch import backend_name, use_backend, use_triton  # noqa: E402
from adazeta.kernels.ops.adapter import tt_adapter  # noqa: E402
from adazeta.kernels.ops.blocks import unpack_blocks  # noqa: E402
from adazeta.kernels.ops.checks import aligned_offsets  # noqa: E402
from adazeta.kernels.ops.factors import stacked_factors, tt_factors  # noqa: E402
from adazeta.kernels.ops.layers import tt_apply, tt_linear  # noqa: E402
from adazeta.kernels.ops.low_rank_add import low_rank_add  # noqa: E402
from adazeta.kernels.ops.noise import (  # noqa: E402
    add_noise_,
    gaussian,
    pairs,
    perturbed_copies,
    rademacher,
)
from adazeta.kernels.ops.rules import (  # noqa: E402
    helene_update_,
    sign_update_,
    square_update_,
)
from adazeta.kernels.ops.updates import adam_update_, momentum_update_  # noqa: E402
from adazeta.kernels.plan import FactorLayer, FactorPlan, Factors  # noqa: E402

__all__ = [
    "FactorLayer",
    "FactorPlan",
    "Factors",
    "adam_update_",
    "add_noise_",
    "aligned_offsets",
    "backend_name",
    "gaussian",
    "helene_update_",
    "low_rank_add",
    "momentum_update_",
    "pairs",
    "perturbed_copies",
    "rademacher",
    "sign_update_",
    "square_update_",
    "stacked_factors",
    "tt_adapter",
    "tt_apply",
    "tt_factors",
    "tt_linear",
    "unpack_blocks",
    "use_backend",
    "use_triton",
]
