"""Noise as a pure function of (seed, element index), in plain PyTorch.

This file is the ground truth of noise version 1, and draws version 2 (``pairs.py``) as well. Every
float32 operation below is rounded separately, in the order written, so a backend that repeats the
operations repeats the bits.

Sources: Philox-4x32-10 is from Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
1, 2, 3" (SC 2011); the normals are from Box, Muller, "A note on the generation of random normal
deviates" (1958).
"""

import torch
from torch import Tensor

from .arithmetic import horner, square_root
from .pairs import pair

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF

# Streams: the third counter word, which keeps draws for different purposes independent where they
# share a seed. The values belong to noise version 1, and so to every log and adapter written.
# 3 serves twice: the seeds of initial values are the user's, those of rounding a hash of the step.
PERTURBATION_STREAM = 0  # directions
ROUNDING_STREAM = 1  # stochastic rounding of parameters
BASIS_STREAM = 2  # bases of random subspaces
INIT_STREAM = 3  # initial values of tensor-train layers
MOMENTUM_ROUNDING_STREAM = 3  # stochastic rounding of a 16-bit momentum
CURVATURE_ROUNDING_STREAM = 4  # stochastic rounding of a 16-bit curvature

# Every constant below is a float32 written out in full, so that no backend rounds it again.
#
# log(1 + f) = f - f^2/2 + f^3 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1], cos(2 pi t) = 1 + t^2 C(t^2)
# and sin(2 pi t) = t S(t^2) on [-1/8, 1/8]: minimax fits (Lawson's iteratively reweighted least
# squares on 2,000 Chebyshev nodes, absolute error of the whole function as the weight), within
# 1.4e-9, 5.4e-11 and 1.3e-9 of the functions before the coefficients were rounded. S_0 and C_0
# are replaced by 2 pi and -2 pi^2, each as a short head and a tail, so that a head times a short
# factor is exact in float32.
LOG = (
    0.333333283662796,
    -0.25001060962677,
    0.20001615583896637,
    -0.16616523265838623,
    0.14190006256103516,
    -0.1320788860321045,
    0.12854920327663422,
    -0.07631202787160873,
)
SIN_HEAD, SIN_TAIL = 6.28125, 0.0019353071693331003
SIN = (-41.34162902832031, 81.58812713623047, -75.24006652832031)
COS_HEAD, COS_TAIL = -19.734375, -0.004833802115172148
COS = (64.93932342529297, -85.44374084472656, 59.24596405029297)
LOG4_HEAD, LOG4_TAIL = 1.3862953186035156, -9.574836212777882e-07
SQRT_HALF_BITS = 0x3F3504F3
ONE_BITS = 0x3F800000
EXPONENT_BITS = 0x7F800000
# Keeps 12 significant bits of a float32 (products of two such numbers are exact), or 6 bits.
TWELVE_BITS = -(1 << 12)
SIX_BITS = -(1 << 18)

# Counters drawn at a time: enough to hide the cost of a call, few enough for a CPU's cache.
CHUNK = 1 << 16


def _round(words: tuple[Tensor, ...], keys: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    c0, c1, c2, c3 = words
    # An int64 product wraps, which leaves all 64 bits of the unsigned product in place.
    p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
    return (
        (p1 >> 32) & WORD ^ c1 ^ keys[0],
        p1 & WORD,
        (p0 >> 32) & WORD ^ c3 ^ keys[1],
        p0 & WORD,
    )


def philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, ...]:
    """Compute Philox-4x32-10 of counters and keys.

    Args:
        c0: first counter words, int64 tensor holding uint32 values, any shape.
        c1: second counter words; all six arguments broadcast together.
        c2: third counter words.
        c3: fourth counter words.
        k0: first key words.
        k1: second key words.

    Returns:
        Four int64 tensors that hold the uint32 output words.
    """
    words: tuple[Tensor, ...] = (c0, c1, c2, c3)
    for step in range(ROUNDS):
        keys = tuple((key + step * weyl) & WORD for key, weyl in zip((k0, k1), WEYL, strict=True))
        words = _round(words, keys)
    return tuple(torch.broadcast_tensors(*words))


def blocks(seeds: Tensor, first: int, count: int, stream: int) -> tuple[Tensor, ...]:
    """Compute the words of the counters ``first .. first + count - 1`` for each seed.

    Same values as :func:`philox`, in place where the working set would otherwise double.

    Args:
        seeds: int64 tensor of shape (P,).
        first: first counter (low 64 bits of it).
        count: how many consecutive counters.
        stream: third counter word.

    Returns:
        Four int64 tensors of shape (P, count); only the low 32 bits of each element count.
    """
    device = seeds.device
    counter = torch.arange(first, first + count, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words: tuple[Tensor, ...] = (counter & WORD, counter >> 32, zero + stream, zero)
    k0, k1 = (seeds & WORD)[:, None], (seeds >> 32 & WORD)[:, None]
    shape = (len(seeds), count)
    for _ in range(2):
        # Two words are still alike for all seeds or all counters, so these rounds are cheap.
        words = _round(words, (k0, k1))
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    c0, c1, c2, c3 = (word.expand(shape).clone() for word in words)
    high = torch.empty_like(c0)
    for _ in range(ROUNDS - 2):
        c0.mul_(MULTIPLIERS[0])
        c2.mul_(MULTIPLIERS[1])
        torch.bitwise_right_shift(c2, 32, out=high)
        c1.bitwise_xor_(high).bitwise_xor_(k0).bitwise_and_(WORD)
        torch.bitwise_right_shift(c0, 32, out=high)
        c3.bitwise_xor_(high).bitwise_xor_(k1).bitwise_and_(WORD)
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def words(seeds: Tensor, start: int, count: int, stream: int) -> Tensor:
    """Draw one uniform word per element: lane i mod 4 of the counter i div 4 for element i.

    Args:
        seeds: int64 tensor of shape (P,).
        start: element index of the first word.
        count: number of words.
        stream: third counter word.

    Returns:
        int64 tensor of shape (P, count) that holds uint32 values.
    """
    first, last = start // 4, -(-(start + count) // 4)
    lanes = torch.stack(blocks(seeds, first, last - first, stream), dim=-1) & WORD
    return lanes.view(len(seeds), -1)[:, start % 4 : start % 4 + count]


def _short(value: Tensor, mask: int) -> Tensor:
    return (value.view(torch.int32) & mask).view(torch.float32)


def _radius(k: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(-2 log u), u = (k + 1/2) 2^-24, as a 12-bit head and a float32 tail."""
    # u = (1 + f) 2^-octaves with 1 + f in [sqrt(1/2), sqrt(2)); f is exact, as k and the power
    # of two are integers below 2^24 that lie close together.
    whole = k.to(torch.float32)
    bits = (whole + 0.5).view(torch.int32).add_(ONE_BITS - SQRT_HALF_BITS)
    power = bits & EXPONENT_BITS
    inverse = (0x7F000000 - power).view(torch.float32)
    f = whole.sub_(power.view(torch.float32)).add_(0.5).mul_(inverse)
    octaves = (151 - (bits >> 23)).to(torch.float32)
    square = f * f
    log = (square * 0.5).sub_(horner(f, LOG).mul_(square.mul_(f))).sub_(f)
    high = octaves * LOG4_HEAD
    low = octaves.mul_(LOG4_TAIL).add_(log.add_(log))
    radius = square_root(high + low)
    # The rounding errors of the sum and of the root would cost up to 4e-7 where the radius is
    # 5, so the root is completed by r = head + (v - head^2) / (r + head); head^2 is exact.
    head = _short(radius, TWELVE_BITS)
    return head, high.sub_(head * head).add_(low).div_(radius.add_(head))


def _product(rh: Tensor, rl: Tensor, value: Tensor, exact: Tensor, rest: Tensor) -> Tensor:
    """Return (rh + rl) * (exact + rest), rounded once but for terms below 2^-11 of it."""
    short = _short(value, TWELVE_BITS)
    tail = (exact - short).add_(rest).mul_(rh).add_(value * rl)
    return short.mul_(rh).add_(tail)


def box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Turn pairs of words into pairs of standard normals.

    u = ((w >> 8) + 1/2) 2^-24 for each word w; the normals are sqrt(-2 log u1) times
    cos(2 pi u2) and sin(2 pi u2). Each is within 4e-7 of the exact value for these uniforms.

    Args:
        first: int32 tensor whose bits are the words behind u1.
        second: int32 tensor of the same shape, the words behind u2.

    Returns:
        Two float32 tensors of that shape.
    """
    rh, rl = _radius((first >> 8) & 0xFFFFFF)
    k = (second >> 8) & 0xFFFFFF
    # u2 = quarter / 4 + t with |t| < 1/8, in integers and so exactly.
    quarter = (k + (1 << 21)) >> 22
    t = k.sub_(quarter << 22).to(torch.float32).add_(0.5).mul_(2.0**-24)
    head = _short(t, SIX_BITS)
    tail = t - head
    square = t * t
    exact = head * SIN_HEAD
    rest = horner(square, SIN).mul_(square).add_(SIN_TAIL).mul_(t).add_(tail * SIN_HEAD)
    sine = _product(rh, rl, exact + rest, exact, rest)
    exact = (head * head).mul_(COS_HEAD)
    rest = horner(square, COS).mul_(square).add_(COS_TAIL).mul_(square)
    rest.add_(t.add_(head).mul_(tail).mul_(COS_HEAD))
    cosine = (exact + rest).add_(1.0)
    short = _short(cosine, TWELVE_BITS)
    rest = (1.0 - short).add_(exact).add_(rest).mul_(rh).add_(cosine.mul_(rl))
    cosine = short.mul_(rh).add_(rest)
    odd = (quarter & 1).bool()
    return (
        torch.where(odd, sine, cosine).mul_(1 - ((quarter + 1) & 2)),
        torch.where(odd, cosine, sine).mul_(1 - (quarter & 2)),
    )


def gaussian_blocks(seeds: Tensor, first: int, count: int, stream: int) -> Tensor:
    """Draw the normals of ``count`` counters from ``first`` on: float32 (P, 4 * count)."""
    w0, w1, w2, w3 = blocks(seeds, first, count, stream)
    shape = (2, len(seeds), count)
    left = torch.empty(shape, dtype=torch.int32, device=seeds.device)
    right = torch.empty_like(left)
    for half, (u, v) in enumerate(((w0, w1), (w2, w3))):
        left[half].copy_(u)
        right[half].copy_(v)
    out = torch.empty((len(seeds), count, 2, 2), device=seeds.device)
    for lane, normal in enumerate(box_muller(left, right)):
        out[..., lane] = normal.permute(1, 2, 0)
    return out.view(len(seeds), 4 * count)


def rademacher_blocks(seeds: Tensor, first: int, count: int, stream: int) -> Tensor:
    """Draw the signs of ``count`` counters from ``first`` on: float32 (P, 128 * count)."""
    words = torch.stack(blocks(seeds, first, count, stream), dim=-1)
    bits = words[..., None] >> torch.arange(32, device=seeds.device) & 1
    return bits.to(torch.float32).mul_(2.0).sub_(1.0).reshape(len(seeds), 128 * count)


def pairs_blocks(seeds: Tensor, first: int, count: int, stream: int) -> Tensor:
    """Draw the normals of version 2 of ``count`` counters from ``first`` on: (P, 8 * count)."""
    out = torch.empty((len(seeds), count, 4, 2), device=seeds.device)
    for word, found in enumerate(blocks(seeds, first, count, stream)):
        out[..., word, 0], out[..., word, 1] = pair(found.to(torch.int32))
    return out.view(len(seeds), 8 * count)


DISTRIBUTIONS = {
    "gaussian": (4, gaussian_blocks),
    "rademacher": (128, rademacher_blocks),
    "pairs": (8, pairs_blocks),
}


def draw(seeds: Tensor, start: int, count: int, stream: int, distribution: str) -> Tensor:
    """Draw elements ``start .. start + count - 1`` of the noise of each seed.

    Args:
        seeds: int64 tensor of shape (P,), the 64-bit seeds.
        start: element index of the first element, 0 <= start < 2^63.
        count: number of elements.
        stream: third counter word.
        distribution: ``"gaussian"``, ``"rademacher"`` or ``"pairs"``.

    Returns:
        float32 tensor of shape (P, count).
    """
    per_block, draw_blocks = DISTRIBUTIONS[distribution]
    first, last = start // per_block, -(-(start + count) // per_block)
    step = max(1, CHUNK * 4 // (per_block * max(1, len(seeds))))
    skip = start - first * per_block
    if last - first <= step:
        return draw_blocks(seeds, first, last - first, stream)[:, skip : skip + count]
    out = torch.empty((len(seeds), (last - first) * per_block), device=seeds.device)
    for block in range(first, last, step):
        size = min(step, last - block)
        begin = (block - first) * per_block
        out[:, begin : begin + size * per_block] = draw_blocks(seeds, block, size, stream)
    return out[:, skip : skip + count]
