"""What a compiled program moves, read from its text: collectives, and traffic to and from memory."""

import jax
import jax.numpy as jnp
import pytest

from melodjinn_jax.training.costs import Collective, find_collectives, memory_traffic

HLO = """
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gathered = f32[8,4]{1,0:T(8,128)} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %begun = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %done = bf16[8,4]{1,0} all-gather-done(%begun)
}

%below (state: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%index, %limit), direction=LT
}

%backwards (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %grads = (bf16[1,4]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/bf16[2]{0:T(2,128)S(1)}) all-reduce(%a, %b), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true, to_apply=%add
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%init), condition=%upto, body=%body, backend_config={"known_trip_count":{"n":"16"}}
  %layers = (s32[], f32[8,4]) while(%loop), condition=%below, body=%backwards, metadata={op_name="while"}
  %both = (f32[10]{0}, f32[6]{0}) all-reduce(%u, %v), replica_groups={}, to_apply=%add
  ROOT %part = f32[2,4]{1,0} reduce-scatter(%w), replica_groups=[4,2]<=[8], to_apply=%add
}
"""


def test_collectives_are_found_and_counted_as_often_as_their_loop_runs():
    found = find_collectives(HLO, 8)
    assert found == [
        Collective("all-gather", 4, 32, 16 * (128 + 64)),
        Collective("all-reduce", 4, 6, 6 * 12),
        Collective("all-reduce", 8, 1, 64),
        Collective("reduce-scatter", 2, 1, 32),
    ]
    assert [one.sent for one in found] == [16 * 192 * 3 / 4, 2 * 72 * 3 / 4, 2 * 64 * 7 / 8, 32]


MEMORY_HLO = """
HloModule step, is_scheduled=true

%fused_slice (p.0: f32[16,8,128], p.1: s32[]) -> f32[8,128] {
  %p.0 = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)S(6)} constant(0)
  %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %flat = f32[8,128]{1,0:T(8,128)} bitcast(%one)
  ROOT %negative = f32[8,128]{1,0:T(8,128)} negate(%flat)
}

%fused_update (q.0: f32[16,8,128], q.1: f32[8,128], q.2: s32[]) -> (f32[16,8,128], f32[8,128]) {
  %q.0 = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %q.1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %q.2 = s32[]{:T(128)S(6)} parameter(2)
  %begin = s32[]{:T(128)S(6)} constant(0)
  %row = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%q.1)
  %stack = f32[16,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%q.0, %row, %q.2, %begin, %begin)
  ROOT %two = (f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) tuple(%stack, %q.1)
}

%body (state: (s32[], f32[16,8,128], f32[8,128])) -> (s32[], f32[16,8,128], f32[8,128]) {
  %state = (s32[]{:T(128)S(6)}, f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %index = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %kept = f32[16,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %read = f32[8,128]{1,0:T(8,128)} fusion(%kept, %index), kind=kLoop, calls=%fused_slice
  %wrote = (f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) fusion(%kept, %read, %index), \
kind=kLoop, calls=%fused_update
  ROOT %next = (s32[]{:T(128)S(6)}, f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) tuple(%index, %kept, %read)
}

%below (state.1: (s32[], f32[16,8,128], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(16)
  ROOT %less = pred[]{:T(512)S(6)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[16,8,128], y: bf16[3,130]) -> f32[8,128] {
  %x = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %y = bf16[3,130]{1,0:T(8,128)(2,1)} parameter(1)
  %loop = (s32[], f32[16,8,128], f32[8,128]) while(%init), condition=%below, body=%body
  %near = (bf16[3,130]{1,0:T(8,128)(2,1)S(1)}, bf16[3,130]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%y)
  %here = bf16[3,130]{1,0:T(8,128)(2,1)S(1)} copy-done(%near)
  %part = ((f32[16,8,128]{2,1,0:T(8,128)}), f32[2,8,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), \
slice={[0:2], [0:8], [0:128]}
  %second = f32[2,8,128]{2,1,0:T(8,128)S(1)} slice-done(%part)
  ROOT %out = f32[8,128]{1,0:T(8,128)} custom-call(%second, %here), custom_call_target="attention"
}
"""


def test_traffic_counts_slices_updates_and_padding_but_no_memory_of_the_chip():
    row = 4 * 8 * 128
    # In each of 16 turns a row of the stack is read and written by itself, then read and written into the stack.
    loop = 16 * (row + row + row + row)
    # 3 x 130 in tiles of 8 x 128; two rows brought near; one row comes out.
    rest = 2 * 8 * 256 + 2 * row + row
    assert memory_traffic(MEMORY_HLO) == loop + rest


@pytest.mark.parametrize("length", [1, 8])
def test_traffic_of_a_loop_over_layers_grows_with_their_number_alone(length):
    """As compiled here: whoever runs it reads each layer's matrix once, and neither the stack nor a body once."""

    def run(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    def traffic(layers: int) -> int:
        shapes = (jax.ShapeDtypeStruct((64, 64), "float32"), jax.ShapeDtypeStruct((layers, 64, 64), "float32"))
        return memory_traffic(jax.jit(run).lower(*shapes).compile().as_text())

    per_layer = (traffic(4 * length) - traffic(2 * length)) / (2 * length)
    matrix = 4 * 64 * 64
    # At least: read a matrix and x, write x. At most a few copies of each more.
    assert 3 * matrix <= per_layer <= 10 * matrix
