import pytest

from bnonly_jax.benchmark import program

# As XLA writes them for a TPU, shortened.
TEXT = """HloModule jit__fun, is_scheduled=true, entry_computation_layout={(s32[])->f32[]}

%fused_computation (param_0.1: bf16[128,32,32,16], param_1: s32[]) -> bf16[1,32,32,16] {
  %param_0.1 = bf16[128,32,32,16]{0,3,2,1:T(8,128)(2,1)S(1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %slice.1 = bf16[1,32,32,16]{0,3,2,1} dynamic-slice(%param_0.1, %param_1), dynamic_slice_sizes={1,32,32,16}
}

%region_body (arg: (s32[], bf16[128,32,32,16])) -> (s32[], bf16[128,32,32,16]) {
  %arg = (s32[]{:T(128)}, /*index=1*/bf16[128,32,32,16]{0,3,2,1:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[128,32,32,16]{0,3,2,1} get-tuple-element(%arg), index=1
  %fusion.1 = bf16[1,32,32,16]{0,3,2,1:T(8,128)(2,1)S(1)} fusion(%x, %i), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(_fun)/shard_map/jvp(CifarResNet)/while/body/conv1/conv_general_dilated"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce.1 = (f32[1,16]{1,0:T(1,128)}, f32[]) all-reduce(%i, %x), to_apply=%add, metadata={op_name="jit(_fun)/jvp(CifarResNet)/norm1/psum"}
  ROOT %tuple = (s32[], bf16[128,32,32,16]{0,3,2,1}) tuple(%i, %x)
}

%region_condition (arg.1: (s32[], bf16[128,32,32,16])) -> pred[] {
  %arg.1 = (s32[], bf16[128,32,32,16]) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %constant.5 = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i.1, %constant.5), direction=LT
}

%cheap (arg.2: f32[8]) -> f32[8] {
  %arg.2 = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%arg.2), backend_config={"estimated_cycles":"7"}
}

%dear (arg.3: f32[8]) -> f32[8] {
  %arg.3 = f32[8]{0} parameter(0)
  ROOT %copy.2 = f32[8]{0} copy(%arg.3), metadata={op_name="jit(_fun)/images/jit(_where)/select_n"}, backend_config={"estimated_cycles":"70"}
}

%called (arg.4: f32[8]) -> f32[8] {
  %arg.4 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%arg.4, %arg.4), metadata={op_name="jit(_fun)/vmap(optimizer)/add"}, backend_config={"estimated_cycles":"3"}
}

ENTRY %main.1_spmd (p: (s32[], bf16[128,32,32,16]), q: f32[8]) -> f32[8] {
  %p = (s32[], bf16[128,32,32,16]) parameter(0)
  %q = f32[8]{0} parameter(1)
  %while.1 = (s32[], bf16[128,32,32,16]) while(%p), condition=%region_condition, body=%region_body, backend_config={"known_trip_count":{"n":"4"}}
  %while.2 = (s32[], bf16[128,32,32,16]) while(%while.1), condition=%region_condition, body=%region_body
  %index = s32[] get-tuple-element(%while.2), index=0
  %either = f32[8]{0} conditional(%index, %q, %q), branch_computations={%cheap, %dear}
  %call.1 = f32[8]{0} call(%either), to_apply=%called
  %copy-start = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%call.1)
  %copy-done = f32[8]{0:S(1)} copy-done(%copy-start)
  ROOT %multiply_fusion.3 = f32[8]{0} multiply(%copy-done, %q), metadata={op_name="jit(_fun)/transpose(jvp(CifarResNet))/mul"}, backend_config={"estimated_cycles":"11"}
}
"""  # noqa: E501


@pytest.fixture(scope='module')
def parsed():
  return program.parse(TEXT)


def test_loops_count_as_often_as_they_run_and_calls_and_the_dearest_branch_once(parsed):
  found = [(run.operation.name, run.times, run.operation.cycles) for run in program.runs(parsed)]
  assert found == [
      ('fusion.1', 4, 100), ('all-reduce.1', 4, None),  # as often as the compiler says
      ('fusion.1', 5, 100), ('all-reduce.1', 5, None),  # as often as the condition allows
      ('copy.2', 1, 70), ('add.1', 1, 3), ('copy-start', 1, None), ('multiply_fusion.3', 1, 11)]


def test_operations_belong_to_the_stages_that_the_step_names(parsed):
  stages = {run.operation.name: program.stage(run.operation) for run in program.runs(parsed)}
  assert stages == {'fusion.1': 'forward', 'all-reduce.1': 'all-reduce', 'copy.2': 'images',
                    'add.1': 'optimizer', 'copy-start': 'rest', 'multiply_fusion.3': 'backward'}


def test_without_autodiff_all_that_is_named_is_forward(parsed):
  operation = program.Operation('a', 'f32[]', 'add', (), 'metadata={op_name="jit(f)/Net/add"}')
  assert program.stage(operation) == 'rest'
  assert program.stage(operation, trains=False) == 'forward'


def test_what_is_all_reduced_is_the_operands_as_often_as_they_are(parsed):
  image = 2 * 128 * 32 * 32 * 16
  assert program.reduced(list(program.runs(parsed)), parsed) == (9, 9 * (4 + image))


def test_a_slice_of_a_stack_counts_as_the_slice(parsed):
  run = next(program.runs(parsed))
  assert program.moved(run, parsed) == 2 * 2 * 32 * 32 * 16 + 4  # read, written, and the index


def test_a_slice_written_into_a_stack_counts_as_the_slice():
  parsed = program.parse("""
%fused (a: f32[10,8], b: f32[1,8], i: s32[]) -> f32[10,8] {
  %a = f32[10,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %update = f32[10,8]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}

ENTRY %main (x: f32[10,8], y: f32[1,8], j: s32[]) -> f32[10,8] {
  %x = f32[10,8]{1,0} parameter(0)
  %y = f32[1,8]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %loop_update_fusion.12 = f32[10,8]{1,0} fusion(%x, %y, %j), kind=kLoop, calls=%fused
}
""")
  run, = program.runs(parsed)
  assert program.moved(run, parsed) == 32 + 32 + 4
  assert program.kernel(run.operation) == 'loop_update_fusion'


def test_a_kernel_of_a_library_is_named_by_it():
  operation = program.Operation('cudnn-conv.3', 'f32[]', 'custom-call', (),
                                'custom_call_target="__cudnn$convForward"')
  assert program.kernel(operation) == '__cudnn$convForward'


def test_the_largest_array_stands_for_a_shape():
  assert program.largest('(f32[16]{0:T(128)S(1)}, /*index=1*/bf16[128,32]{0,1})') == 'bf16[128,32]'
