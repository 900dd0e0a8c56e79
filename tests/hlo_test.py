import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from raptr_jax.training import compiled_program, hlo, roofline

# A loop as XLA writes it for TPUs: how often it runs is in its condition only.
TPU_LOOP = """
%body.1 (p.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p.1 = (s32[], f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %one.1 = s32[]{:T(128)} constant(1)
  %next.1 = s32[]{:T(128)} add(%i.1, %one.1)
  %x.1 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p.1), index=1
  %kernel.7 = f32[8,128]{1,0:T(8,128)} custom-call(%x.1), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
}}
  %y.1 = (f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) fusion(%kernel.7), \
kind=kCustom, calls=%fused_computation.1
  %m.1 = f32[8,128]{1,0:T(8,128)} fusion(%y.1), kind=kOutput, \
calls=%async_collective_fusion.1
  %z.1 = f32[8,128]{1,0:T(8,128)} fusion(%m.1), kind=kCustom, \
calls=%fused_computation.2
  %s.1 = f32[2,128]{1,0:T(8,128)} fusion(%z.1), kind=kCustom, \
calls=%all-reduce-scatter.1
  ROOT %t.1 = (s32[], f32[8,128]{1,0:T(8,128)S(1)}) tuple(%next.1, %z.1)
}

%condition.1 (p.2: (s32[], f32[8,128])) -> pred[] {
  %count.1 = s32[]{:T(128)} constant(5)
  %p.2 = (s32[], f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt.1 = pred[] compare(%i.2, %count.1), direction=LT
}

%fused_computation.1 (p.3: f32[2,128]) -> (f32[8,128], u32[]) {
  %p.3 = f32[2,128]{1,0:T(8,128)} parameter(0)
  %g.1 = f32[8,128]{1,0:T(8,128)} all-gather(%p.3), channel_id=4
  ROOT %c.1 = (f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) custom-call(%g.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.4: f32[2,128]) -> f32[8,128] {
  %p.4 = f32[2,128]{1,0:T(8,128)} parameter(0)
  ROOT %g.2 = f32[8,128]{1,0:T(8,128)} all-gather(%p.4), channel_id=4
}

%fused_computation.2 (p.6: f32[2,128]) -> f32[8,128] {
  %p.6 = f32[2,128]{1,0:T(8,128)} parameter(0)
  %g.3 = f32[8,128]{1,0:T(8,128)} all-gather(%p.6), channel_id=4
  ROOT %c.3 = f32[8,128]{1,0:T(8,128)} custom-call(%g.3), \
custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p.5: f32[8,128]) -> f32[2,128] {
  %p.5 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %r.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%p.5), channel_id=5
  ROOT %d.1 = f32[2,128]{1,0:T(8,128)} dynamic-slice(%r.1)
}

ENTRY %main.1 (a.1: f32[8,128]) -> f32[8,128] {
  %a.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero.1 = s32[]{:T(128)} constant(0)
  %t.2 = (s32[], f32[8,128]{1,0:T(8,128)S(1)}) tuple(%zero.1, %a.1)
  %w.1 = (s32[], f32[8,128]{1,0:T(8,128)S(1)}) while(%t.2), \
condition=%condition.1, body=%body.1
  ROOT %out.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%w.1), index=1
}
"""


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile()


def program(function, *args):
  return hlo.parse(compiled(function, *args).as_text())


def layers(count, x, w):
  """`count` products, one after another."""
  return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, count)[0]


X, W = jnp.ones((64, 32)), jnp.ones((32, 32))


def times_of(program, opcode):
  return [p.times for i, p in program.executed() if i.opcode == opcode]


def test_what_is_in_loops_counts_as_often_as_they_run():
  def nested(x, w):
    return lax.scan(lambda x, _: (layers(3, x, w), None), x, None, 4)[0]

  assert times_of(program(layers_of(6), X, W), "dot") == [6]
  assert times_of(program(nested, X, W), "dot") == [12]


def layers_of(count):
  return lambda x, w: layers(count, x, w)


def test_a_loop_that_does_not_say_how_often_it_runs_counts_once():
  def until_small(x, w):
    return lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ w, x)

  found = [p for i, p in program(until_small, X, W).executed() if p.loops]
  assert {(place.times, place.is_known) for place in found} == {(1, False)}


def test_branches_of_a_conditional_are_optional():
  def maybe(keep, x, w):
    return lax.cond(keep, lambda x: x @ w, lambda x: x, x)

  places = {i.opcode: p for i, p in program(maybe, True, X, W).executed()}
  assert places["dot"].is_optional
  assert not places["conditional"].is_optional


def test_a_program_for_a_tpu_is_read():
  parsed = hlo.parse(TPU_LOOP)
  assert parsed.entry == "main.1"
  assert {p.times for _, p in parsed.executed() if p.loops} == {5}
  assert compiled_program.kernels(parsed) == {"kernel": 5}
  found = [
    (x.kind, x.place.times, x.num_bytes)
    for x in compiled_program.collectives(parsed)
  ]
  size = 4 * 8 * 128  # The gather is in three fusions, but happens once.
  assert found == [("all-gather", 5, size), ("reduce-scatter", 5, size)]


def test_cudnns_attention_goes_by_its_own_name():
  line = (
    "ENTRY %main (q: f16[8]) -> f16[8] {\n"
    "  %q = f16[8]{0} parameter(0)\n"
    "  %attention.5 = (f16[8]{0}, u8[0]{0}) custom-call(%q),"
    ' custom_call_target="__cudnn$fmhaSoftmax"\n'
    '  %sort.1 = f16[8]{0} custom-call(%q), custom_call_target="__cub$sort"\n'
    "}\n"
  )
  assert compiled_program.kernels(hlo.parse(line)) == {"__cudnn$fmhaSoftmax": 1}


def test_collectives_of_a_compiled_program():
  mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))

  def shard(x):
    def body(x, _):
      whole = lax.all_gather(x, "data", tiled=True)  # [64, 32]
      part = lax.psum_scatter(jnp.sin(whole), "data", tiled=True)  # [8, 32]
      return part + lax.psum(part.sum(), "data"), None

    return lax.scan(body, x, None, 3)[0]

  split = PartitionSpec("data")
  mapped = jax.shard_map(
    shard, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
  )
  found = compiled_program.collectives(program(mapped, X))
  assert {x.kind: (x.place.times, x.num_bytes) for x in found} == {
    "all-gather": (3, 4 * 64 * 32),
    "reduce-scatter": (3, 4 * 64 * 32),
    "all-reduce": (3, 4),
  }


@pytest.mark.parametrize(
  ("shape", "parts", "size", "in_main_memory"),
  [
    ("f32[]", ["f32[]"], 4, 4),
    ("bf16[6,128]{1,0:T(8,128)(2,1)S(1)}", None, 2 * 6 * 128, 0),
    ("pred[3,5]{1,0}", None, 15, 15),
    ("s4[10]{0}", None, 5, 5),
    ("f8e4m3fn[4]{0}", None, 4, 4),
    ("token[]", None, 0, 0),
    (
      "((f32[2]{0}, s32[]), /*index=5*/u8[7]{0:S(5)})",
      ["(f32[2]{0}, s32[])", "u8[7]{0:S(5)}"],
      19,
      12,
    ),
  ],
)
def test_shapes(shape, parts, size, in_main_memory):
  assert hlo.parts(shape) == (parts or [shape])
  assert hlo.num_bytes(shape) == size
  assert hlo.num_bytes(shape, main_memory=True) == in_main_memory


def test_traffic_without_a_loop_is_what_xla_counts():
  def function(x, w):
    return jnp.tanh(x @ w).T @ x

  step = compiled(function, X, W)
  traffic = roofline.memory_traffic(hlo.parse(step.as_text()))
  expected = step.cost_analysis()["bytes accessed"]
  assert traffic == pytest.approx(expected, rel=0.01)


def test_traffic_grows_with_the_rounds_of_a_loop():
  traffic = [
    roofline.memory_traffic(program(layers_of(count), X, W))
    for count in (2, 4, 8)
  ]
  assert traffic[2] - traffic[1] == 2 * (traffic[1] - traffic[0])
  assert traffic[1] - traffic[0] >= 2 * X.nbytes


def test_traffic_of_a_slice_is_not_that_of_the_whole():
  def read(stack, index):
    return lax.dynamic_index_in_dim(stack, index) + 1

  def write(stack, row, index):
    return lax.dynamic_update_index_in_dim(stack, row * 2, index, 0)

  stack, row = jnp.ones((100, 50)), jnp.ones(50)
  assert roofline.memory_traffic(program(read, stack, 3)) < stack.nbytes / 10
  donated = jax.jit(write, donate_argnums=0).lower(stack, row, 3).compile()
  moved = roofline.memory_traffic(hlo.parse(donated.as_text()))
  assert moved < stack.nbytes / 10


def test_the_estimate_is_the_longer_of_two_times():
  parsed = program(layers_of(4), X, W)
  kind = "NVIDIA H200"
  few = roofline.roofline(parsed, flops=1.0, kind=kind, num_devices=2)
  assert few.seconds == few.memory == few.num_bytes / 4.8e12
  many = roofline.roofline(parsed, flops=989e12, kind=kind, num_devices=2)
  assert many.seconds == many.arithmetic == pytest.approx(0.5)
  unknown = roofline.roofline(parsed, flops=1.0, kind="cpu", num_devices=2)
  assert unknown is None
