"""Triton kernels: one pass over weights that computes gradients, moves means and log stds, and writes the next draw.

All tensors of a launch are given by their addresses in a table on the device, one row a weight tensor, so that one launch
covers any number of tensors; each program works on one chunk of one tensor.
"""

# ruff: noqa: SIM108, SIM109
# mypy: ignore-errors
import triton
import triton.language as tl

from bitsback.kernels import _layout

__all__ = ["fill_kernel", "reduce_kernel", "sweep_kernel"]

ROW: tl.constexpr = tl.constexpr(_layout.ROW)
FLOATS: tl.constexpr = tl.constexpr(_layout.FLOATS)
GROUP_NUMBERS: tl.constexpr = tl.constexpr(_layout.GROUP_NUMBERS)
DRAWN: tl.constexpr = tl.constexpr(_layout.DRAWN)
LOCATION_EACH: tl.constexpr = tl.constexpr(_layout.LOCATION_EACH)
LOOKS: tl.constexpr = tl.constexpr(_layout.LOOKS)
WAS_DRAWN: tl.constexpr = tl.constexpr(_layout.WAS_DRAWN)
SUMS: tl.constexpr = tl.constexpr(_layout.SUMS)

(
    WEIGHT, MEAN, LOG_STD, GRADIENT, PENDING, AVERAGE, STEP_COUNT, LENGTH, STREAM, START, MEAN_GROUP, LOG_STD_GROUP, FLAGS,
    SHARE, LOCATION, LOG_SCALE, THIRD, COUNT, SCALES, BY_MEAN, BY_LOG_STD,
) = (tl.constexpr(int(word)) for word in _layout.Word)  # fmt: skip
STEP, FILL, FILLED, DRAW, LOOK, REWRITE = (tl.constexpr(mode) for mode in _layout.MODES)
NORMAL, LAPLACE, POWER, LOGISTIC, MIXTURE, HORSESHOE, GIVEN = (tl.constexpr(form) for form in _layout.FORMS.values())
ADAM, IVON = (tl.constexpr(rule) for rule in _layout.RULES)
COARSE: tl.constexpr = tl.constexpr(2.0**-11)
NOTHING: tl.constexpr = tl.constexpr(2.0**-40)
TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)
SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
SQRT_2_BY_PI: tl.constexpr = tl.constexpr(0.7978845608028654)
FARTHEST: tl.constexpr = tl.constexpr(1e12)
CUT: tl.constexpr = tl.constexpr(80.0)


@triton.jit
def _normals(seed, number, stream, index):
    """Return standard normal numbers: Philox 4x32-10 under the key `seed`, and Box-Muller."""
    c0 = (index & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c2 = ((number + index * 0) & 0xFFFFFFFF).to(tl.uint32)
    c3 = ((stream + index * 0) & 0xFFFFFFFF).to(tl.uint32)
    a, b, _, _ = tl.philox(seed, c0, c1, c2, c3)
    # the uniform numbers have 32 bits, so that tails reach 6.7
    u = (a.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = (b.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    return tl.sqrt(tl.maximum(-2.0 * tl.log(u), 0.0)) * tl.cos(6.283185307179586 * v)


@triton.jit(do_not_specialize=["count", "start", "offset", "stream"])
def fill_kernel(out, count, start, draw, offset, stream, BLOCK: tl.constexpr):
    """Fill a tensor with standard normal numbers of a stream.

    Args:
        out: tensor (count,).
        count: its length.
        start: index of the first number.
        draw: (2,) int64, seed and number from which draws are counted.
        offset: distance of the draw from the number in `draw`.
        stream: number of the stream, 32 bits.
        BLOCK: numbers that one program makes.
    """
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    e = _normals(tl.load(draw), tl.load(draw + 1) + offset, stream, start + o)
    tl.store(out + o, e.to(out.dtype.element_ty), mask=o < count)


@triton.jit
def _power_slope(d, square, df):
    return (df + 1.0) * d / (df * square + d * d)


@triton.jit
def _logistic_slope(d, scale):
    x = d / scale  # tanh(x / 2)
    e = tl.exp(-tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t) / scale


@triton.jit
def _logit_of(logits, component, shift):
    """Return the log weight of a component; the logit of the first is zero."""
    logit = -shift
    if component > 0:
        logit += tl.load(logits + component - 1)
    return logit


@triton.jit
def _mixture_slope(w, location, log_scale, logits, components, sums, keep, FIRST: tl.constexpr, LEARN: tl.constexpr):
    """Return the slope of -log p of a mixture; with LEARN, write the sums of its learned numbers' gradients."""
    w = tl.minimum(tl.maximum(w, -FARTHEST), FARTHEST)
    norm = 1.0  # the first logit is zero
    for i in range(1, components):
        norm += tl.exp(tl.load(logits + i - 1))
    shift = tl.log(norm)
    top = w * 0 - 3e38
    for i in range(components):
        s = tl.load(log_scale + i)
        z = (w - tl.load(location + i)) * (tl.exp(-s) * SQRT_HALF)
        logit = _logit_of(logits, i, shift)
        top = tl.maximum(top, logit - s - z * z)
    total = w * 0
    slope = w * 0
    for i in range(components):
        s = tl.load(log_scale + i)
        mu = tl.load(location + i)
        z = (w - mu) * (tl.exp(-s) * SQRT_HALF)
        logit = _logit_of(logits, i, shift)
        share = tl.exp(tl.maximum(logit - s - z * z - top, -CUT))
        total += share
        slope += share * tl.exp(-2.0 * s) * (w - mu)
    if LEARN:
        for i in range(components):
            s = tl.load(log_scale + i)
            z = (w - tl.load(location + i)) * (tl.exp(-s) * SQRT_HALF)
            logit = _logit_of(logits, i, shift)
            share = tl.where(keep, tl.exp(tl.maximum(logit - s - z * z - top, -CUT)) / total, 0.0)
            tl.store(sums + FIRST + 3 * i, tl.sum(share, 0))
            tl.store(sums + FIRST + 3 * i + 1, tl.sum(share * z, 0))
            tl.store(sums + FIRST + 3 * i + 2, tl.sum(share * z * z, 0))
    return slope / total


@triton.jit
def _table_at(table, x, y, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Interpolate a table (ROWS, COLUMNS) bilinearly at column x and row y; beyond its ends, take the nearest entry."""
    x = tl.minimum(tl.maximum(x, 0.0), COLUMNS - 1.0)
    y = tl.minimum(tl.maximum(y, 0.0), ROWS - 1.0)
    i = tl.minimum(x.to(tl.int32), COLUMNS - 2)
    j = tl.minimum(y.to(tl.int32), ROWS - 2)
    a = x - i.to(tl.float32)
    b = y - j.to(tl.float32)
    at = table + j * COLUMNS + i
    upper = tl.load(at) * (1.0 - a) + tl.load(at + 1) * a
    lower = tl.load(at + COLUMNS) * (1.0 - a) + tl.load(at + COLUMNS + 1) * a
    return upper * (1.0 - b) + lower * b


@triton.jit
def _floats(address):
    return address.to(tl.pointer_type(tl.float32))


@triton.jit
def _read(address, o, keep, FULL: tl.constexpr):
    """Read elements; of a whole, aligned chunk without a mask, 128 bits a thread."""
    pointers = address + o
    if FULL:
        # the hint has to be on the pointers themselves: Triton up to 3.6 forgets that of an address out of a table
        found = tl.load(tl.multiple_of(pointers, [16]))
    else:
        found = tl.load(pointers, mask=keep, other=0.0)
    return found


@triton.jit
def _write(address, o, values, keep, FULL: tl.constexpr):
    pointers = address + o
    if FULL:
        tl.store(tl.multiple_of(pointers, [16]), values)
    else:
        tl.store(pointers, values, mask=keep)


@triton.jit(do_not_specialize=["offset_now", "sign_now", "offset_next", "sign_next"])
def sweep_kernel(
    chunks, table, draw, numbers, sums, narrow, offset_now, sign_now, offset_next, sign_next,
    MODE: tl.constexpr, RULE: tl.constexpr, PRIOR: tl.constexpr, WIDTH: tl.constexpr, LEARN: tl.constexpr, CARRY: tl.constexpr,
    FULL: tl.constexpr, BLOCK: tl.constexpr, TABLE_COLUMNS: tl.constexpr, TABLE_ROWS: tl.constexpr, LOWEST: tl.constexpr,
    CELLS: tl.constexpr,
):  # fmt: skip
    """Work on one chunk of BLOCK elements of a tensor.

    Args:
        chunks: (programs, 4) int32: row in the table, number of the chunk in its tensor, number of the chunk in `sums`.
        table: (tensors, ROW) int64, see :class:`bitsback.kernels.Word`.
        draw: (2,) int64, seed and number from which draws are counted.
        numbers: float64, FLOATS and then GROUP_NUMBERS for each parameter group.
        sums: (chunks, WIDTH) float32, written.
        narrow: (chunks,) int8: whether w - m has too few digits, so that s e is made again.
        offset_now: distance of the current draw from the number in `draw`.
        sign_now: its sign.
        offset_next: distance of the next draw.
        sign_next: its sign.
        MODE: STEP, FILL, FILLED, DRAW, LOOK or REWRITE.
        RULE: ADAM or IVON.
        PRIOR: form of the density.
        WIDTH: sums of a chunk.
        LEARN: whether gradients by learned numbers of the prior are summed.
        CARRY: whether pending gradients are corrected for the change of the draw.
        FULL: whether every chunk of the launch is whole and aligned.
        BLOCK: elements of a chunk.
        TABLE_COLUMNS: columns of the horseshoe's table.
        TABLE_ROWS: its rows.
        LOWEST: log r in its first column.
        CELLS: columns for each unit of log r.
    """
    pid = tl.program_id(0)
    place = chunks + pid * 4
    which = tl.load(place)
    chunk = tl.load(place + 1)
    at = tl.load(place + 2)
    row = table + which * ROW
    n = tl.load(row + LENGTH)
    o = chunk.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    weight = _floats(tl.load(row + WEIGHT))
    mean = _floats(tl.load(row + MEAN))
    log_std = _floats(tl.load(row + LOG_STD))
    flags = tl.load(row + FLAGS)
    keep = o < n
    M = _read(mean, o, keep, FULL)
    R = _read(log_std, o, keep, FULL)
    S = tl.exp(R)
    seed = tl.load(draw)
    number = tl.load(draw + 1)
    stream = tl.load(row + STREAM)
    index = tl.load(row + START) + o
    drawn = flags & DRAWN
    E = M * 0
    if MODE != LOOK and (drawn | (flags & LOOKS)) != 0:
        E = _normals(seed, number + offset_next, stream, index) * sign_next
    mine = sums + at.to(tl.int64) * WIDTH
    location = _floats(tl.load(row + LOCATION))
    scale_at = _floats(tl.load(row + LOG_SCALE))

    gm = M * 0
    gl = M * 0
    if MODE == STEP or MODE == FILL:
        k = tl.load(numbers).to(tl.float32)
        # gradient of the KL, without k
        pm = M * 0
        pl = M * 0
        gradient = tl.load(row + GRADIENT)
        pending = tl.load(row + PENDING)
        G = M * 0
        if gradient != 0:
            G = _read(_floats(gradient), o, keep, FULL)
        spread = M * 0
        if drawn != 0:
            if tl.load(narrow + at) != 0:
                spread = S * _normals(seed, number + offset_now, stream, index) * sign_now
            else:
                spread = _read(weight, o, keep, FULL) - M
        if PRIOR == GIVEN:
            pm = _read(_floats(tl.load(row + BY_MEAN)), o, keep, FULL)
            pl = _read(_floats(tl.load(row + BY_LOG_STD)), o, keep, FULL)
        elif PRIOR == MIXTURE:
            components = tl.load(row + COUNT)
            logits = _floats(tl.load(row + THIRD))
            seen = spread
            if (flags & LOOKS) != 0:
                seen = S * E
            pm = _mixture_slope(M + seen, location, scale_at, logits, components, mine, keep, SUMS, LEARN)
            behind = _mixture_slope(M - seen, location, scale_at, logits, components, mine, keep, SUMS, False)
            pl = seen * 0.5 * (pm - behind) - 1.0
            pm = 0.5 * (pm + behind)
        else:
            if (flags & LOCATION_EACH) != 0:
                mu = _read(location, o, keep, FULL)
            else:
                mu = tl.load(location) + M * 0
            scales = tl.load(row + SCALES)
            if scales > 1:
                log_scale = tl.load(scale_at + (o // tl.load(row + COUNT)) % scales)
            else:
                log_scale = tl.load(scale_at) + M * 0
            d = M - mu
            if PRIOR == NORMAL:
                precision = tl.exp(-2.0 * log_scale)
                pm = d * precision
                pl = S * S * precision - 1.0
                if LEARN:
                    tl.store(mine, tl.sum(tl.where(keep, -(pl + pm * d), 0.0), 0))
            elif PRIOR == LAPLACE:
                scale = tl.exp(log_scale)
                s = tl.maximum(S, TINY)
                z = d / s * SQRT_HALF
                pm = tl.erf(z) / scale
                pl = tl.exp(-z * z) * s * (SQRT_2_BY_PI / scale) - 1.0
                if LEARN:
                    tl.store(mine, tl.sum(tl.where(keep, -(pl + pm * d), 0.0), 0))
            elif PRIOR == HORSESHOE:
                scale = tl.exp(log_scale)
                u = d / scale
                r = tl.exp(tl.maximum(2.0 * (R - log_scale), 2.0 * LOWEST))
                s = tl.sqrt(r)
                r += u * u
                x = (0.5 * tl.log(r) - LOWEST) * CELLS
                y = s / tl.sqrt(r) * (TABLE_ROWS - 1.0)
                third = _floats(tl.load(row + THIRD))
                pm = _table_at(third, x, y, TABLE_COLUMNS, TABLE_ROWS) * u / r / scale
                pl = _table_at(third + TABLE_COLUMNS * TABLE_ROWS, x, y, TABLE_COLUMNS, TABLE_ROWS) - 1.0
                if LEARN:
                    tl.store(mine, tl.sum(tl.where(keep, -(pl + pm * d), 0.0), 0))
            else:
                scale = tl.exp(log_scale)
                seen = spread
                if (flags & LOOKS) != 0:
                    seen = S * E
                if PRIOR == POWER:
                    df = tl.load(_floats(tl.load(row + THIRD)))
                    pm = _power_slope(d + seen, scale * scale, df)
                    behind = _power_slope(d - seen, scale * scale, df)
                else:
                    pm = _logistic_slope(d + seen, scale)
                    behind = _logistic_slope(d - seen, scale)
                if LEARN:
                    tl.store(mine, tl.sum(tl.where(keep, 1.0 - pm * (d + seen), 0.0), 0))
                pl = seen * 0.5 * (pm - behind) - 1.0
                pm = 0.5 * (pm + behind)
        share = tl.load(row + SHARE)
        if share != 0:
            factor = _read(_floats(share), o, keep, FULL)
            pm *= factor
            pl *= factor
        gm = G + k * pm
        gl = G * spread + k * pl
        if pending != 0:
            gl += _read(_floats(pending), o, keep, FULL)
        if MODE == FILL:
            _write(_floats(tl.load(row + BY_MEAN)), o, gm, keep, FULL)
            _write(_floats(tl.load(row + BY_LOG_STD)), o, gl, keep, FULL)
    if MODE == FILLED:
        gm = _read(_floats(tl.load(row + BY_MEAN)), o, keep, FULL)
        gl = _read(_floats(tl.load(row + BY_LOG_STD)), o, keep, FULL)

    if MODE == STEP or MODE == FILLED:
        own = numbers + FLOATS + tl.load(row + MEAN_GROUP) * GROUP_NUMBERS
        wide = numbers + FLOATS + tl.load(row + LOG_STD_GROUP) * GROUP_NUMBERS
        t = tl.load(_floats(tl.load(row + STEP_COUNT)))
        rate_m = tl.load(own).to(tl.float32)
        rate_l = tl.load(wide).to(tl.float32)
        b1 = tl.load(own + 1)
        b2 = tl.load(own + 2)
        c1 = (1.0 - tl.exp(t * tl.log(b1))).to(tl.float32)
        first = _floats(tl.load(row + AVERAGE))
        A1 = _read(first, o, keep, FULL)
        A1 += (1.0 - b1).to(tl.float32) * (gm - A1)
        _write(first, o, A1, keep, FULL)
        if RULE == ADAM:
            c2 = tl.sqrt(1.0 - tl.exp(t * tl.log(b2))).to(tl.float32)
            eps = tl.load(own + 3).to(tl.float32)
            eps_l = tl.load(wide + 3).to(tl.float32)
            B2 = b2.to(tl.float32)
            rest2 = (1.0 - b2).to(tl.float32)
            l1 = tl.load(wide + 1)
            l2 = tl.load(wide + 2)
            second = _floats(tl.load(row + AVERAGE + 1))
            first_l = _floats(tl.load(row + AVERAGE + 2))
            second_l = _floats(tl.load(row + AVERAGE + 3))
            V1 = _read(second, o, keep, FULL)
            A2 = _read(first_l, o, keep, FULL)
            V2 = _read(second_l, o, keep, FULL)
            V1 = B2 * V1 + rest2 * gm * gm
            A2 += (1.0 - l1).to(tl.float32) * (gl - A2)
            V2 = l2.to(tl.float32) * V2 + (1.0 - l2).to(tl.float32) * gl * gl
            _write(second, o, V1, keep, FULL)
            _write(first_l, o, A2, keep, FULL)
            _write(second_l, o, V2, keep, FULL)
            c1_l = (1.0 - tl.exp(t * tl.log(l1))).to(tl.float32)
            c2_l = tl.sqrt(1.0 - tl.exp(t * tl.log(l2))).to(tl.float32)
            M -= rate_m / c1 * A1 / (tl.sqrt(V1) / c2 + eps)
            R -= rate_l / c1_l * A2 / (tl.sqrt(V2) / c2_l + eps_l)
        else:
            to_nats = tl.load(numbers + 1).to(tl.float32)
            most = tl.load(own + 4).to(tl.float32)
            step = A1 * S * (rate_m * to_nats / c1)
            M -= tl.minimum(tl.maximum(step, -most), most) * S
            x = tl.minimum(tl.maximum(gl * (rate_l * to_nats), -1.0), 1.0)
            R -= 0.5 * tl.log(1.0 + x + 0.5 * x * x)
        _write(mean, o, M, keep, FULL)
        _write(log_std, o, R, keep, FULL)
        S = tl.exp(R)

    if MODE != FILL and MODE != LOOK:
        if CARRY:
            carried = tl.load(row + PENDING)
            gradient = tl.load(row + GRADIENT)
            if carried != 0:
                change = S * E
                if (flags & WAS_DRAWN) != 0:
                    change -= S * _normals(seed, number + offset_now, stream, index) * sign_now
                L = _read(_floats(carried), o, keep, FULL)
                G = _read(_floats(gradient), o, keep, FULL)
                _write(_floats(carried), o, L - G * change, keep, FULL)
        if drawn != 0:
            _write(weight, o, M + S * E, keep, FULL)
        else:
            _write(weight, o, M, keep, FULL)
    if MODE != FILL and MODE != DRAW:
        size = tl.abs(M)
        is_narrow = keep & (COARSE * size > S) & (NOTHING * size < S)
        tl.store(narrow + at, tl.max(is_narrow.to(tl.int32), 0).to(tl.int8))
        if PRIOR == NORMAL:
            if (flags & LOCATION_EACH) != 0:
                centre = _read(location, o, keep, FULL)
            else:
                centre = tl.load(location) + M * 0
            d = M - centre
            tl.store(mine + 1, tl.sum(tl.where(keep, S * S, 0.0), 0))
            tl.store(mine + 2, tl.sum(tl.where(keep, d * d, 0.0), 0))
            tl.store(mine + 3, tl.sum(tl.where(keep, R, 0.0), 0))


@triton.jit
def reduce_kernel(sums, ranges, totals, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Add sums over the chunks of each tensor, in float64.

    Args:
        sums: (chunks, WIDTH) float32.
        ranges: (tensors, 2) int64, first and last chunk of each tensor.
        totals: (tensors, WIDTH) float64, written.
        WIDTH: sums of a chunk.
        COLUMNS: power of two not below WIDTH.
        BLOCK: chunks that are added together.
    """
    pid = tl.program_id(0)
    first = tl.load(ranges + 2 * pid)
    last = tl.load(ranges + 2 * pid + 1)
    columns = tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float64)
    for start in range(first, last, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        keep = (chunk < last)[:, None] & (columns < WIDTH)[None, :]
        part = tl.load(sums + chunk[:, None] * WIDTH + columns[None, :], mask=keep, other=0.0)
        total += tl.sum(part.to(tl.float64), 0)
    tl.store(totals + pid * WIDTH + columns, total, mask=columns < WIDTH)
