"""Operations of torch for which a host waits for its device."""

import torch

aten = torch.ops.aten
# The host needs what the device has counted or computed.
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
}


def host_waits(operation, args):
    """Whether the host waits, also to index by a mask."""
    indices = args[1] if operation in (aten.index.Tensor, aten.index_put_.default) else []
    mask = any(index is not None and index.dtype == torch.bool for index in indices)
    return mask or operation in WAITS
