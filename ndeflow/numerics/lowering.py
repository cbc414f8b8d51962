"""A graph as machine code. The compiler is named only here: importing it takes half a second."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
import torch._inductor.config as config
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._inductor import cpu_vec_isa, ir
from torch._inductor.codecache import CppCodeCache
from torch._inductor.codegen import common, cpp, wrapper
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.cpu_vec_isa import VecISA
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.lowering import (
    add_layout_constraint,
    constrain_to_fx_strides,
    fallbacks,
    lowerings,
    make_pointwise,
    register_lowering,
)
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.virtualized import V, ops
from torch._ops import OpOverload

from ndeflow.numerics import products, rational
from ndeflow.numerics.allocator import keep_freed_memory
from ndeflow.numerics.audit import Refusal
from ndeflow.numerics.products import DOOR, LAID, OPERATION, SHIMS, SOURCE, asked, lay_once
from ndeflow.numerics.rational import BOUND, TANH

_ROOMS = Path(__file__).with_name("rooms.h")
_CALLS = Path(__file__).with_name("calls.cpp")

Run = Callable[[list[Tensor]], Sequence[Tensor]]

part: Callable[..., Tensor] = torch._C._dynamo.guards._reinterpret_tensor  # pyright: ignore
"""A tensor of given sizes and strides from an offset on in the memory of another: no view of it, which is written to
without anybody being told. As compiled programs make them."""


def lower(graph: fx.GraphModule) -> Run:
    """A rewritten graph as machine code, which takes its arguments in a list, with any number of rows."""
    keep_freed_memory()
    _pin(graph)
    with best_instructions():
        if asked(graph.graph):
            provide()
        return _lowered(graph)


def _lowered(graph: fx.GraphModule) -> Run:
    fakes = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    mode, foreseen = TracingContext(fakes[0].fake_mode), written(graph)
    shims = "aot_inductor.custom_ops_to_c_shims"
    apart = [*config._cache_config_ignore_prefix, shims]  # what cannot be part of a key would keep all out of the cache
    options = {"cpp_wrapper": True, shims: SHIMS, "_cache_config_ignore_prefix": apart}
    options |= {
        "cpp.enable_floating_point_contract_flag": "fast",
        "size_asserts": not foreseen,
        "post_grad_custom_post_pass": _LayOnce(),
    }
    with torch.no_grad(), row_by_row(), _roomy(foreseen), config.patch(options), tracing(mode):
        compiled: Any = compile_fx_inner(graph, fakes, cpp_wrapper=True, is_inference=True)
    return compiled.current_callable  # its own call looks for a profiler and a cache first


def picking(run: Run, read: list[int]) -> Run:
    """Machine code that takes its arguments from these places of a list, and is called directly where that can be."""
    about: dict[str, Any] = getattr(run, "__globals__", {})
    results = about.get("results")
    library = None if results is None else _calls()
    if library is None:
        return lambda inputs: run([inputs[i] for i in read])
    module = about["inductor_entry"].__self__
    entry = ctypes.cast(ctypes.CDLL(module.__file__).ndeflow_entry, ctypes.c_void_p)
    return library.ndeflow_function(entry, read, results)


@cache
def _calls() -> Any:
    """What makes functions of programs, compiled here; None: it cannot be, or does not know how torch's tensors lie."""
    try:
        made: Any = CppCodeCache.load(f"// {torch.__version__}\n{_CALLS.read_text()}", needs_vec_isa=False)
    except Exception:
        return None
    library, example = ctypes.PyDLL(made._name), torch.zeros(())
    library.ndeflow_knows.argtypes = ctypes.py_object, ctypes.c_void_p
    library.ndeflow_function.argtypes = ctypes.c_void_p, ctypes.py_object, ctypes.c_ssize_t
    library.ndeflow_function.restype = ctypes.py_object
    return library if library.ndeflow_knows(example, example._cdata) else None


def decompositions() -> dict[Any, Callable[..., Any]]:
    """How operations are written that the compiler does not take: by operation, a function of the same arguments."""
    return select_decomp_table()


def kept_in() -> str:
    """The folder of compiled code: TORCHINDUCTOR_CACHE_DIR, by default a temporary one."""
    return cache_dir()


def written(graph: fx.GraphModule) -> bool:
    """Whether the compiler writes code for every operation of a graph, or it is ours: none gives unforeseen shapes.

    Then neither these nor the arguments are looked at at each call, which took a tenth of a product: who calls a
    program gives it what it was traced with. And no operation can call the same program again.
    """
    found = {node.target for node in graph.graph.nodes if isinstance(node.target, OpOverload)}
    return all(operation in lowerings and operation not in fallbacks for operation in found)


@cache
def provide() -> None:
    """Let machine code that is loaded from now on find the operations of `products`, compiled here.

    By a library that depends on nothing, and calls them: what is loaded for all to find takes along all that it depends
    on, which of torch must not be found by others. Raises `Refusal` where it cannot be made.
    """
    try:
        made: Any = CppCodeCache.load(f"// {torch.__version__}\n{SOURCE.read_text()}", needs_vec_isa=True)
        found: Any = CppCodeCache.load(DOOR)
    except Exception as error:
        raise Refusal(f"its products of matrices could not be made for AVX-512 ({error}); update torch") from error
    doors = ctypes.CDLL(found._name, mode=ctypes.RTLD_GLOBAL)
    for name in ("ndeflow_product", "ndeflow_lay"):
        ctypes.c_void_p.in_dll(doors, name).value = ctypes.cast(getattr(made, name), ctypes.c_void_p).value


@contextmanager
def best_instructions() -> Iterator[None]:
    """Inside, of the processor's instruction sets the best that the C++ compiler has is found, and no other tried.

    The compiler would try them all, each by several libraries that processes of their own load: seconds of processor
    time for a choice that is the first one's. Where the choice was made by the user it is left to it.
    """
    asked_for = os.getenv("ATEN_CPU_CAPABILITY") or config.cpp.simdlen is not None
    if asked_for or platform.machine() not in ("x86_64", "AMD64"):
        yield
        return
    with (
        _replaced(VecISA, "_probe_load", lambda *_: True),  # made here for a processor that says that it has these
        _replaced(cpu_vec_isa, "valid_vec_isa_list", _best),
    ):
        yield


@cache
def _best() -> list[VecISA]:
    there = cpu_vec_isa.x86_isa_checker()
    had = (isa for isa in cpu_vec_isa.supported_vec_isa_list if all(flag in there for flag in str(isa).split()))
    return list(islice(filter(None, had), 1))


@contextmanager
def row_by_row() -> Iterator[None]:
    """Inside, loops that hand a row's values on to each other are not fused where a pass takes many rows at once.

    Torch 2.13 keeps the values of the last of these rows only, for all of them (pytorch/pytorch#185702).
    """
    Fused: Any = cpp.OuterLoopFusedSchedulerNode
    check = Fused.check_outer_fusion_loop_level_attr

    def checked(self: Any, kernels: Any, depth: int) -> bool:
        steps = [loop.steps for kernel in kernels for loop in kernel.loop_nest.loops[:depth]]
        return all(step == 1 for step in steps) and check(self, kernels, depth)

    with _replaced(Fused, "check_outer_fusion_loop_level_attr", checked):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of the compiler's has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _pin(graph: fx.GraphModule) -> None:
    """Have the compiler lay out results as they were traced: other programs were made for them as they lie there."""
    output: Any = graph.graph.output_node()
    strides = [x.meta["val"].stride() for x in output.args[0]]
    output.meta |= {"original_output_strides": strides, "user_visible_output_idxs": list(range(len(strides)))}


@final
class _LayOnce(CustomGraphPass):
    """`lay_once`, after all that the compiler does to a graph; other programs are made when these files change."""

    def __call__(self, graph: fx.Graph) -> None:
        lay_once(graph)

    def uuid(self) -> Any:
        files = __file__, rational.__file__, products.__file__, str(SOURCE), str(_ROOMS)
        return get_hash_for_files(files)


def _written_by(name: str, operation: OpOverload, inputs: Sequence[Any], size: Sequence[Any]) -> Any:
    """A function of matrices that writes its result, by rows, where the compiler plans it."""
    found = [ir.ExternKernel.realize_input(x) for x in inputs]
    layout = ir.FixedLayout(found[0].get_device(), found[0].get_dtype(), size)
    return ir.TensorBox.create(ir.ExternKernelOut(layout, found, cpp_kernel_name=name, op_overload=operation))


@register_lowering(OPERATION, type_promotion_kind=None)
def _product(x: Any, weight: Any) -> Any:
    size = [x.get_size()[0], weight.get_size()[1]]
    return _written_by("aoti_torch_cpu_product", OPERATION, [x, weight], size)


@register_lowering(LAID, type_promotion_kind=None)
def _laid(x: Any) -> Any:
    return _written_by("aoti_torch_cpu_lay", LAID, [x], x.get_size())


@register_lowering(TANH, type_promotion_kind=None)
def _rational_tanh(x: Any) -> Any:
    def value(x: Any) -> Any:
        number = partial(ops.constant, dtype=torch.float32)
        within = ops.minimum(ops.maximum(x, number(-BOUND)), number(BOUND))
        return rational.quotient(within, number)

    return make_pointwise(value)(x)


add_layout_constraint(OPERATION, constrain_to_fx_strides)
add_layout_constraint(LAID, constrain_to_fx_strides)


@contextmanager
def _roomy(wanted: bool) -> Iterator[None]:
    """Inside, what is written for the CPU is `Roomy`, if that is wanted."""
    common.init_backend_registration()
    codes = common.device_codegens["cpu"]
    with _replaced(codes, "cpp_wrapper_codegen", Roomy if wanted else codes.cpp_wrapper_codegen):
        yield


@final
class Roomy(CppWrapperCpu):
    """C++ around kernels that keeps small intermediate tensors from call to call, as rooms.h says.

    Other threads may run Python meanwhile where it takes long enough to be worth the change of hands. What it overrides
    are torch 2.13's own methods; where they are no longer called nothing is kept. rooms: names of the tensors that are
    given to nobody. views: of arguments, by what makes them and where that is written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rooms: set[str] = set()
        self._views: dict[tuple[str, Any], str] = {}

    @staticmethod
    def create(*_: Any) -> Roomy:
        return Roomy()

    def write_prefix(self) -> None:
        super().write_prefix()
        self.prefix.splice(_ROOMS.read_text())

    def _write_input_preamble(self) -> None:
        count = len(V.graph.graph_inputs) + len(V.graph.constants)
        self.prefix.splice(f"""
            auto inputs = steal_from_raw_handles_to_raii_handles(input_handles, {count});
            std::optional<py::gil_scoped_release_simple> release;
            if (take_long(inputs)) release.emplace();
        """)

    def generate_end(self, result: Any) -> None:
        super().generate_end(result)
        if not V.graph.constants and all(self.output_is_tensor.values()):
            result.splice(f"results = {len(self.output_is_tensor)}  # all that it takes and gives are tensors")

    def memory_plan_reuse(self) -> None:
        super().memory_plan_reuse()
        given = set(V.graph.get_output_names())
        for line in reversed(self.lines):  # what is given is known of a later name first
            if isinstance(line, (wrapper.ReuseLine, wrapper.ReinterpretLine)) and line.reused_as.get_name() in given:
                given.add(line.node.get_name())
        self._rooms = {x.node.get_name() for x in self.lines if isinstance(x, wrapper.AllocateLine)} - given

    def make_buffer_allocation(self, buffer: Any) -> str:
        name = buffer.get_name()
        if name not in self._rooms:
            return super().make_buffer_allocation(buffer)
        about = self._shape(buffer), self.codegen_dtype(buffer.get_dtype()), self.codegen_device(buffer.get_device())
        return f"static thread_local Room {name}_room; auto& {name} = {name}_room.of({', '.join(about)});"

    def codegen_exact_buffer_reuse(self, old_name: str, new_name: str, del_line: str) -> str:
        if old_name not in self._rooms:
            return super().codegen_exact_buffer_reuse(old_name, new_name, del_line)
        self._rooms.add(new_name)
        return f"auto& {new_name} = {old_name};  // reuse"

    def codegen_deferred_allocation(self, name: str, view: Any) -> None:
        if view.get_dtype() != view.data.get_dtype():
            return super().codegen_deferred_allocation(name, view)
        place = f"{self.codegen_sizevar(view.layout.offset)}, {view.get_dtype().itemsize}"
        about = f"{view.get_name()}, {self._shape(view)}, {place}"
        self.writeline(common.DeferredLine(name, f"Slice {name}({about});  // alias"))

    def codegen_reinterpret_view(
        self, data: Any, size: Any, stride: Any, offset: Any, writeline: Any, *more: Any, **rest: Any
    ) -> str:
        made = super().codegen_reinterpret_view(data, size, stride, offset, writeline, *more, **rest)
        if data.get_name() not in V.graph.graph_inputs:
            return made
        if (made, writeline) not in self._views:
            self._views[made, writeline] = name = f"view_{len(self._views)}"
            writeline(f"auto {name} = {made};")
        return self._views[made, writeline]

    def _shape(self, x: Any) -> str:
        """Number of dimensions, sizes and strides."""
        size, strides = x.get_size(), x.get_stride()
        return f"{len(size)}, {self._numbers(size)}, {self._numbers(strides)}"

    def _numbers(self, numbers: Sequence[Any]) -> str:
        fixed, text = self.is_statically_known_list_of_ints(numbers), self.codegen_shape_tuple(numbers)
        return self.codegen_int_array_var(
            text, self.writeline, known_statically=fixed, graph=self.get_codegened_graph()
        )
