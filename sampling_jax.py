"""The sampler and the reader on JAX. Letters, inputs and precisions as in `sampling`.

Nothing can be raised here, and nothing is checked. Where `perform` would raise FloatingPointError, since a text's logits are no numbers any
more, SampleText gives the index -1, and -1 for all that follows in that text: whoever calls it has to look for them. ReadText gives NaN.
A uniform number below 0 stands for no draw: text and states stay where they are, so that one compiled function serves for many lengths.
"""

import jax.numpy as jnp
from jax import lax

from ops_jax import dot, normalised, product, register
from sampling import ReadText, SampleText


@register(SampleText)
def sampletext(op, **kwargs):
    def draw(chars, uniforms, temp, top_k, top_p, min_p, allowed, s0, *params):
        read, logits = _reader(op, s0, params), _output(op, s0, params)
        allowed, temp, top_p, min_p = allowed != 0, *(jnp.asarray(i).astype(jnp.float64) for i in (temp, top_p, min_p))
        top_k = jnp.minimum(top_k, len(allowed)).astype(jnp.int32)

        def texts(keep):
            """keep: None, or the function of the logits and shares (n, V) that says which of them may be drawn."""
            def step(before, uniform):
                chars, states = before
                following, ends = read(chars, states), uniform < 0
                rows = jnp.where(allowed, logits(following[-1]).astype(jnp.float64), -jnp.inf)
                drawn = jnp.where(ends, chars, _drawn(rows, uniform, temp, min_p, keep))
                return (drawn, [jnp.where(ends[:, None], s, f) for s, f in zip(states, following)]), drawn
            (_, states), drawn = lax.scan(step, (chars.astype(jnp.int32), list(s0)), uniforms.T)
            return drawn.T, jnp.stack(states)

        def kept(rows, shares):
            return _likeliest(rows, shares, top_k, top_p)
        # Ranking costs a sort for each step.
        return lax.cond((top_k < len(allowed)) | (top_p < 1), lambda: texts(kept), lambda: texts(None))
    return draw


@register(ReadText)
def readtext(op, **kwargs):
    def along(x, s0, *params):
        read = _reader(op, s0, params)

        def step(states, chars):
            states = read(chars, states)
            return states, states
        _, S = lax.scan(step, list(s0), x)
        return jnp.stack(S)
    return along


def _most(op, s0):
    """`product`'s `most` for states that follow s0 (L, n, H), and for what layers pass up."""
    most = jnp.maximum(jnp.abs(s0).max((0, 2)), 1)[:, None]
    return most, None if op.layernorm else most


def _passedup(op, s):
    return normalised(s) if op.layernorm else s


def _output(op, s0, params):
    """The function: last layer's states (n, H) -> logits (n, V)."""
    *_, V, c = params
    output = product(V, op.precision, _most(op, s0)[1])
    return lambda s: output(_passedup(op, s)) + c


def _reader(op, s0, params):
    """The function (chars (n,), states) -> the states that follow; both lists of (n, H), one a layer."""
    source, weights = (params[:2], params[2:-2]) if op.encoded else ((), params[:-2])
    layers, H, (most, mostpassed) = [weights[i:i + 3] for i in range(0, len(weights), 3)], s0.shape[2], _most(op, s0)
    first = layers[0][0]
    table = dot('vk,kg->vg', jnp.tanh(source[0] + source[1]), first) if op.encoded else first       # by character, for all steps
    Us = [None] + [product(U, op.precision, mostpassed) for U, _, _ in layers[1:]]
    Wzrs, Whs = ([product(W[:, part], op.precision, most) for _, W, _ in layers] for part in (slice(2 * H), slice(2 * H, None)))

    def read(chars, states):
        following = []
        projection = table.at[chars].get(mode='fill', fill_value=jnp.nan, wrap_negative_indices=False)
        for l, (s, (_, _, b)) in enumerate(zip(states, layers)):
            projection = (Us[l](_passedup(op, following[-1])) if l else projection) + b
            zr = jnp.clip(0.2 * (projection[:, :2 * H] + Wzrs[l](s)) + 0.5, 0, 1)
            h = jnp.tanh(projection[:, 2 * H:] + Whs[l](zr[:, H:] * s))
            following.append(h + zr[:, :H] * (s - h))
        return following
    return read


def _drawn(logits, uniform, temp, min_p, keep):
    """`sampling._draw` for each row of logits (n, V), float64, and its number of uniform (n,): int32 (n,), -1 where they are no numbers."""
    most = logits.max(1, keepdims=True)
    shares = jnp.exp((logits - most) / jnp.where(temp == 0, 1, temp))
    if keep:
        shares = jnp.where(keep(logits, shares), shares, 0)
    shares = jnp.where(shares < min_p, 0, shares)
    cumulated = jnp.cumsum(shares, axis=1)
    # XLA's sums needn't grow where a share is 0, or fall behind it by their last bit: only characters with a share count.
    reached = jnp.where(shares > 0, cumulated, -1)
    drawn = _first(reached > uniform[:, None] * reached.max(1, keepdims=True))
    drawn = jnp.where(temp == 0, _first(logits == most), drawn)
    return jnp.where(jnp.isfinite(most[:, 0]), drawn, -1)


def _first(are):
    """The first index at which each row of `are` (n, V), booleans, is true."""
    return lax.argmax(are, 1, jnp.int32)


def _likeliest(logits, shares, top_k, top_p):
    """Which characters (n, V) are among the top_k likeliest, and of these among the fewest likeliest whose shares reach top_p of theirs."""
    n, V = logits.shape
    places = jnp.arange(V, dtype=jnp.int32)
    least, chars, ranked = lax.sort((-logits, jnp.broadcast_to(places, (n, V)), shares), dimension=1, is_stable=True, num_keys=1)
    cumulated = jnp.cumsum(jnp.where(places < top_k, ranked, 0), axis=1)
    reached = (places < top_k) & (cumulated / cumulated[:, -1:] < top_p)
    last = jnp.minimum(jnp.where(top_p < 1, jnp.sum(reached, axis=1, dtype=jnp.int32), V - 1), top_k - 1)[:, None]
    least, char = (jnp.take_along_axis(a, last, axis=1) for a in (least, chars))
    return (-logits < least) | (-logits == least) & (places <= char)
