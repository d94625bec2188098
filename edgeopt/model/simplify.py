"""Fix shapes, fold constants and compare with the original; runs in a worker."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import ModelProto, numpy_helper, version_converter
from pydantic import TypeAdapter

from edgeopt.artifact import TensorSpec
from edgeopt.errors import ModelError
from edgeopt.model.branches import inline_branches
from edgeopt.model.describe import check_values, facts, spec, tensors
from edgeopt.model.graph import drop_unread, initializers, strip_remarks, used_domains
from edgeopt.model.oracle import Array, draw_inputs, open_session, run_model
from edgeopt.model.stored import hide_stored, show_stored
from edgeopt.model.taps import drop_dead_taps

#: Largest |new - old| over max |old| of any output, over three seeded inputs.
TOLERANCE = 1e-4
_SEEDS = (0, 1, 2)
#: A model whose outputs are noise to this degree cannot be compared at all.
_NOISE_LIMIT = 0.01
#: Their results, Gemm and fused operators, are harder to compress than MatMul and Add.
_ONNXRUNTIME_SKIPS = ["MatMulAddFusion"]
#: Place of the weight's zero point among the inputs of operators on integers.
_WEIGHT_ZERO_POINTS = {"MatMulInteger": 3, "ConvInteger": 3, "QLinearMatMul": 5, "QLinearConv": 5}
_ONNXSLIM_SKIPS = ["FusionGemm", "FusionGemmMul", "FusionGemmAdd"]


def convert_opset(path: str, output: str, opset: int) -> dict[str, object]:
    """Write the model in a higher opset; a crash of the converter ends this worker alone."""
    model = onnx.load(path, load_external_data=False)
    model = version_converter.convert_version(model, opset)
    # The checker wants the shape of outputs, which some exporters leave out.
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, data_prop=True))
    onnx.save_model(model, output)
    return {}


def normalize_file(
    path: str,
    original: str,
    output: str,
    shapes: Mapping[str, list[int]],
    values: Mapping[str, float],
    outputs: Sequence[str] = (),
    lowest: int = 0,
) -> dict[str, object]:
    """Write the normalized model and return its facts and how far its outputs moved.

    path may be a converted version of original, with which the result is compared. A model
    whose opset is below lowest is not touched: the reply is then its opset.
    """
    folder = Path(output).parent
    model = onnx.load(path, load_external_data=False)
    opset = max((each.version for each in model.opset_import if not each.domain), default=0)
    if opset < lowest:
        return {"opset": opset}
    for each in model.graph.output:
        if each.type.HasField("tensor_type"):
            # Many tools leave it out; the checker wants one, and what it says is forgotten below.
            each.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(model)
    check_values(model)
    _fix_shapes(model, shapes)
    _bind_values(model, values)
    _keep_outputs(model, outputs)
    names = [each.name for each in model.graph.input], [each.name for each in model.graph.output]
    model = inline_branches(model)
    hidden = hide_stored(model)
    model = show_stored(_slim(_fold(model, folder)), hidden)
    del hidden
    if names != ([e.name for e in model.graph.input], [e.name for e in model.graph.output]):
        raise ModelError(
            "simplifying changed the names of inputs or outputs", fix="simplify the model yourself"
        )
    part_zero_points(model)
    drop_dead_taps(model)
    _clean(model)
    _save(model, Path(output))
    reference = Path(original)
    if shapes or values or outputs:
        reference = folder / "reference.onnx"
        fixed = onnx.load(original, load_external_data=False)
        _fix_shapes(fixed, shapes)
        _bind_values(fixed, values)
        _keep_outputs(fixed, outputs)
        onnx.save_model(fixed, reference)
        del fixed
    difference, found = _compare(reference, Path(output), model)
    if _fix_outputs(model, found):
        _save(model, Path(output))
    if reference != Path(original):
        reference.unlink()
    return {"difference": difference, **facts(model)}


def _fix_shapes(model: ModelProto, shapes: Mapping[str, list[int]]) -> None:
    """Write the dimensions of the inputs by position and forget all derived shapes."""
    stored = initializers(model.graph)
    kept = [each for each in model.graph.input if each.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for value in model.graph.input:
        for dim, size in zip(
            value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False
        ):
            dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _bind_values(model: ModelProto, values: Mapping[str, float]) -> None:
    """Make constants of inputs, filled with one value each."""
    graph = model.graph
    kept = [each for each in graph.input if each.name not in values]
    for each in graph.input:
        if each.name in values:
            described = TensorSpec.model_validate(spec(each))
            filled = np.full(described.shape, values[each.name], described.dtype)
            graph.initializer.append(numpy_helper.from_array(filled, each.name))
    del graph.input[:]
    graph.input.extend(kept)


def _keep_outputs(model: ModelProto, outputs: Sequence[str]) -> None:
    """Leave out the other outputs, and all that only they are computed of, inputs too."""
    if not outputs:
        return
    graph = model.graph
    known = {each.name: each for each in graph.output}
    kept = [known[name] for name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    drop_unread(graph)
    needed = {name for node in graph.node for name in node.input}
    inputs = [each for each in graph.input if each.name in needed]
    del graph.input[:]
    graph.input.extend(inputs)


def _fold(model: ModelProto, folder: Path) -> ModelProto:
    """Let onnxruntime fold constants and drop what is redundant (its basic level)."""
    source, result = folder / "fold-in.onnx", folder / "fold-out.onnx"
    onnx.save_model(model, source)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(result)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=_ONNXRUNTIME_SKIPS
    )
    folded = onnx.load(result)
    source.unlink()
    result.unlink()
    return folded


def _slim(model: ModelProto) -> ModelProto:
    """Let onnxslim merge, remove and propagate shapes."""
    slimmed: ModelProto = onnxslim.slim(model, skip_fusion_patterns=_ONNXSLIM_SKIPS)
    return slimmed


def part_zero_points(model: ModelProto) -> None:
    """Give every integer product a zero point of its weight that no other one reads.

    onnxruntime 1.32, where it moves int8 weights to uint8, does so once per reader and then
    refuses the model: "Attempt to replace the existing tensor". Merging made one of equal ones.
    """
    stored = initializers(model.graph)
    taken = {*stored, *(name for node in model.graph.node for name in (*node.input, *node.output))}
    seen: set[str] = set()
    for node in model.graph.node:
        place = _WEIGHT_ZERO_POINTS.get(node.op_type, 0)
        name = node.input[place] if 0 < place < len(node.input) else ""
        if name in seen:
            own = next(free for i in count(1) if (free := f"{name}.{i}") not in taken)
            copy = model.graph.initializer.add()
            copy.CopyFrom(stored[name])
            copy.name = node.input[place] = own
            taken.add(own)
        elif name in stored:
            seen.add(name)


def _clean(model: ModelProto) -> None:
    """Remove what two exports of the same model may differ in, and unused operator sets."""
    strip_remarks(model)
    model.producer_name, model.producer_version, model.domain = "edgeopt", "", ""
    model.graph.name = "model"
    domains = used_domains(model) | {""}
    opsets = {each.domain if each.domain != "ai.onnx" else "": each for each in model.opset_import}
    kept = [opsets[name] for name in sorted(domains) if name in opsets]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    for tensor in tensors(model):
        if tensor.data_location or tensor.external_data:
            raise ModelError("external data is left in the model", fix="inline it yourself")


def _compare(
    reference: Path, candidate: Path, model: ModelProto
) -> tuple[float, dict[str, list[int]]]:
    """Return the largest relative difference, and each output's shape; refuse too large a one."""
    described = TypeAdapter(tuple[TensorSpec, ...]).validate_python(facts(model)["inputs"])
    names = [each.name for each in model.graph.output]
    worst = 0.0
    shapes: dict[str, list[int]] = {}
    before, after = (open_session(each, optimize=False) for each in (reference, candidate))
    for seed in _SEEDS:
        feeds = draw_inputs(model.graph, described, seed)
        expected, actual = list(before.run(None, feeds)), list(after.run(None, feeds))
        for name, values in zip(names, actual, strict=True):
            if shapes.setdefault(name, list(values.shape)) != list(values.shape):
                raise ModelError(
                    f"the shape of the output {name!r} depends on the values of the inputs",
                    fix="take such operators (NonZero, NonMaxSuppression) out of the model",
                )
        difference = largest_difference(names, expected, actual)
        if difference > TOLERANCE:
            # Outputs near zero are mostly rounding: how much, onnxruntime's own optimizer shows.
            noise = largest_difference(names, expected, run_model(reference, feeds))
            _refuse_difference(difference, allowed=min(max(TOLERANCE, 2 * noise), _NOISE_LIMIT))
        worst = max(worst, difference)
    return worst, shapes


def _refuse_difference(difference: float, *, allowed: float) -> None:
    """Raise ModelError when outputs moved further than allowed."""
    if difference > allowed:
        raise ModelError(
            "the normalized model does not compute what the original does",
            why=f"outputs differ by {difference:.2g} of their largest value, allowed is {allowed}",
            fix="report it with the model; simplifying it yourself may help",
        )


def largest_difference(
    names: Sequence[str], expected: Sequence[Array], actual: Sequence[Array]
) -> float:
    """Return the largest relative difference of all outputs."""
    pairs = zip(names, expected, actual, strict=True)
    return max(relative_difference(name, old, new) for name, old, new in pairs)


def relative_difference(name: str, old: Array, new: Array) -> float:
    """Return max |new - old| / max |old|; refuse outputs that are not finite numbers."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if old.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(old, new) else float("inf")
    before, after = old.astype(np.float64), new.astype(np.float64)
    if np.isnan(before).any() or not before.size:
        raise ModelError(
            f"the output {name!r} of the original model is empty or not a number",
            why="no comparison can mean anything on it",
            fix="check the model, and the shapes given for its inputs",
        )
    finite = np.isfinite(before)
    if not np.isfinite(after[finite]).all() or not np.array_equal(before[~finite], after[~finite]):
        return float("inf")
    difference = np.abs(after[finite] - before[finite]).max(initial=0.0)
    scale = np.abs(before[finite]).max(initial=0.0)
    return float(difference / scale) if scale else float(difference)


def _fix_outputs(model: ModelProto, shapes: Mapping[str, list[int]]) -> bool:
    """Write the observed shape where inference left one open, and tell whether it did."""
    changed = False
    for value in model.graph.output:
        shape = value.type.tensor_type.shape
        if [each.dim_value for each in shape.dim] == shapes[value.name]:
            continue
        changed = True
        del shape.dim[:]
        for size in shapes[value.name]:
            shape.dim.add().dim_value = size
    return changed


def _save(model: ModelProto, path: Path) -> None:
    """Write the same bytes for the same graph."""
    path.write_bytes(model.SerializeToString(deterministic=True))
