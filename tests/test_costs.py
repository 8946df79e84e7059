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
  %y = bf16[2,4]{1,0} get-tuple-element(%state), index=1
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


NESTED_HLO = """
HloModule step, is_scheduled=true

%inner_slice (i.0: f32[16,8,128]) -> bf16[8,128] {
  %i.0 = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %i.1 = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} slice(%i.0), slice={[3:4], [0:8], [0:128]}
  ROOT %i.2 = bf16[8,128]{1,0:T(8,128)(2,1)} bitcast(%i.1)
}

%inner_shape (j.0: f32[8,128]) -> f32[1024] {
  %j.0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %j.1 = f32[1024]{0:T(1024)} bitcast(%j.0)
}

%outer (o.0: f32[8,128], o.1: f32[16,8,128], o.2: f32[8,128]) -> (f32[1024], f32[8,128]) {
  %o.1 = f32[16,8,128]{2,1,0:T(8,128)} parameter(1)
  %o.0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %o.2 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %o.3 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%o.1), kind=kLoop, calls=%inner_slice
  %o.4 = f32[1024]{0:T(1024)} fusion(%o.0), kind=kLoop, calls=%inner_shape
  %o.5 = f32[1024]{0:T(1024)} add(%o.4, %o.3)
  ROOT %o.6 = (f32[1024]{0:T(1024)}, f32[8,128]{1,0:T(8,128)}) tuple(%o.5, %o.2)
}

ENTRY %main (x: f32[8,128], y: f32[16,8,128]) -> f32[1024] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = f32[16,8,128]{2,1,0:T(8,128)} parameter(1)
  %room = f32[8,128]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %out = (f32[1024]{0:T(1024)}, f32[8,128]{1,0:T(8,128)}) fusion(%x, %y, %room), kind=kCustom, \
output_to_operand_aliasing={{1}: (2, {})}, calls=%outer
}
"""


def test_traffic_follows_operands_into_fusions_within_and_counts_nothing_that_is_passed_on():
    row = 4 * 8 * 128
    # One row of the stack, in its own type; x, whose shape alone is changed within; one result.
    assert memory_traffic(NESTED_HLO) == row + row + row


OVERLAPPED_HLO = """
HloModule step, is_scheduled=true

%begun (b.0: bf16[2,4]) -> (bf16[2,4], bf16[8,4]) {
  %b.0 = bf16[2,4]{1,0} parameter(0)
  %b.1 = bf16[8,4]{1,0} all-gather(%b.0), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}
  ROOT %b.2 = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) custom-call(%b.1), custom_call_target="AsyncCollectiveStart"
}

%ended (e.0: bf16[2,4], e.1: bf16[8,4]) -> bf16[8,4] {
  %e.0 = bf16[2,4]{1,0} parameter(0)
  %e.1 = bf16[8,4]{1,0} parameter(1)
  %e.2 = bf16[8,4]{1,0} all-gather(%e.0), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}
  ROOT %e.3 = bf16[8,4]{1,0} custom-call(%e.0, %e.1, %e.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (r.0: bf16[8,4]) -> bf16[2,4] {
  %r.0 = bf16[8,4]{1,0} parameter(0)
  %r.1 = bf16[8,4]{1,0} all-reduce(%r.0), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %r.2 = bf16[2,4]{1,0} dynamic-slice(%r.1, %z, %z), dynamic_slice_sizes={2,4}
}

ENTRY %main (p: bf16[2,4]) -> bf16[2,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  %start = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) fusion(%p), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%begun
  %own = bf16[2,4]{1,0} get-tuple-element(%start), index=0
  %all = bf16[8,4]{1,0} get-tuple-element(%start), index=1
  %done = bf16[8,4]{1,0} fusion(%own, %all), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%ended
  ROOT %part = bf16[2,4]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_collective_in_several_fusions_is_one_and_an_all_reduce_that_keeps_a_part_scatters():
    assert find_collectives(OVERLAPPED_HLO, 8) == [
        Collective("all-gather", 4, 1, 64),
        Collective("reduce-scatter", 4, 1, 16),
    ]


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
