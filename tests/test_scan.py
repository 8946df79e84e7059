"""Where a recording begins and ends to sound, whatever blocks it comes in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.data.audio import HOP_LENGTH
from melodjinn_jax.ingest.scan import _Edges


@given(
    st.lists(st.tuples(st.sampled_from([0, 20, 3000]), st.integers(1, 9000)), max_size=6),
    st.lists(st.integers(1, 5000), max_size=8),
)
def test_edges_are_found_wherever_the_blocks_are_cut(parts, cuts):
    sound = np.concatenate([np.zeros(0, np.int16), *(np.full(n, level, np.int16) for level, n in parts)])
    edges = _Edges()
    for block in np.split(sound, np.minimum(np.cumsum(cuts), len(sound)) if cuts else []):
        edges.push(block)
    start, stop = edges.found()
    frames = np.pad(sound, (0, -len(sound) % HOP_LENGTH)).reshape(-1, HOP_LENGTH).astype(np.float64)
    loud = np.flatnonzero((frames**2).mean(axis=1) > 1e-6 * 32768**2)
    assert start % HOP_LENGTH == 0
    assert 0 <= start <= stop <= len(sound) == edges.samples
    if not len(loud):
        assert (start, stop) == (0, len(sound))
        return
    before, after = loud[0] * HOP_LENGTH - start, stop - (loud[-1] + 1) * HOP_LENGTH
    assert before == min(19, loud[0]) * HOP_LENGTH
    assert after == min(19 * HOP_LENGTH, len(sound) - (loud[-1] + 1) * HOP_LENGTH)
