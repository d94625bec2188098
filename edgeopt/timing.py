"""Measure on the board what each product of a model takes in each form that a plan may give it.

A product with its stored weight is compiled as a model of its own and runs there as a release does;
what the device program takes for any call is measured with the smallest model, and taken off.
Between two calls as many other bytes are read as the whole model has weights besides: it finds its
own as far away as there. Of MiniLM-L6 in float32 they come from beyond the second cache, and the
products take 1.5 times as long as with their weights at hand.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

import edgeopt
from edgeopt.artifact import Bundle, Choice, Model, Plan
from edgeopt.board import Board
from edgeopt.board.facts import BoardFacts, read_facts
from edgeopt.errors import BoardIncompatible, BudgetExceeded
from edgeopt.job import Run
from edgeopt.measure import summarize_samples
from edgeopt.program import run_cold
from edgeopt.scratch import scratch
from edgeopt.tiles import digest_tiles
from edgeopt.times import KernelTime, Times, WholeTime, name_kernel, read_times, write_times
from edgeopt.trial import ROOT

#: Calls that say how long one takes, and ns that the timed ones of a kernel should take together.
_PROBE, _TIMED_NS = 5, 100_000_000
#: ns that reading a byte of memory takes, about, on the slowest boards.
_PER_BYTE = 1.0
#: Bytes that are read meanwhile at most: more than caches hold, and a share of a board's memory.
_MOST_COLD, _SPARE = 1 << 30, 0.25
#: Shapes of each form that are measured, those of most work: others are as their kind is.
_SHAPES = 12
#: Launches of the whole model while its kernels are measured.
_LAUNCHES = 5
#: Timed calls at least and at most.
_FEWEST, _MOST = 20, 2000


@dataclass(frozen=True, slots=True)
class _Bench:
    """A board that is ours for now."""

    run: Run
    board: Board
    facts: BoardFacts
    folder: Path


def is_known(run: Run, model: Model) -> bool:
    """Tell whether all that plans for a model need was measured on such boards before."""
    known = _read(run).wholes.get(model.sha256)
    return known is not None and set(run.job.profile.methods) <= set(known.methods)


def measure_times(
    run: Run, board: Board, model: Model, whole: Bundle, *, renew: Callable[[], None]
) -> int:
    """Measure all that plans for a model need and that is not known; return how many kernels.

    whole is the model as it is, compiled; a board that has no room for it tells nothing of what is
    no product. What was measured is written to the job's file at once; renew is called meanwhile.
    """
    known = _read(run)
    with scratch() as folder:
        bench = _Bench(run, board, read_facts(board), folder)
        forms = list(_forms(run, model, folder))
        missing = list(_missing(run, model, forms, known, folder))
        launches = _Launches(bench, model, whole)
        fixed: dict[int, float] = {}
        for number, each in enumerate(missing):
            renew()
            run.advance("times", number / len(missing))
            launches.until(number / len(missing))
            # Its code was driven out as well.
            about = each.cold.bit_length()
            if about not in fixed:
                fixed[about] = _time_nothing(bench, cold=each.cold)
            # A whole model's shortest inference is made of usual calls, not of the shortest.
            taken = statistics.median(_time_model(bench, each.model, cold=each.cold)) - fixed[about]
            kernel = KernelTime(kind=each.kind, ns=max(taken, 1.0), bound=each.bound)
            known = known.model_copy(update={"kernels": known.kernels | {each.key: kernel}})
            _keep(run, known)
        renew()
        launches.until(1)
        known = _add_others(bench, model, launches.samples, known)
        _keep(run, known)
        renew()
        _keep(run, _time_plans(bench, model, forms, known))
    return len(missing)


class _Launches:
    """Launches of the whole model as it is, some now and some then.

    What else a board does comes and goes in minutes: its 95th percentile is the worst of them.
    """

    def __init__(self, bench: _Bench, model: Model, whole: Bundle) -> None:
        self._bench, self._model, self._whole = bench, model, whole
        #: ns of each inference of each; none on a board that has no room for it.
        self.samples: list[Sequence[int]] = []
        self._fits = True

    def until(self, share: float) -> None:
        """Launch it as often as is due once such a share of everything is done."""
        while self._fits and len(self.samples) <= share * (_LAUNCHES - 1):
            try:
                self.samples.append(_launch(self._bench, self._model, self._whole))
            except (BoardIncompatible, BudgetExceeded):
                self._fits = False


def _add_others(
    bench: _Bench, model: Model, launches: Sequence[Sequence[int]], known: Times
) -> Times:
    """Add what a model takes besides its products, and how much less these take among others."""
    from edgeopt.compress.pace import Clock, pace_of, predict_nodes

    job = bench.run.job
    pace = pace_of(job.target, threads=job.threads)
    plain = list(predict_nodes(model, Clock(pace)))
    before = known.wholes.get(model.sha256)
    found = WholeTime(
        methods=tuple(job.profile.methods),
        weights=sum(each.stored for each in plain),
        bound=sum(each.bound for each in plain if not each.key) if launches else 0,
        scales={} if before is None else before.scales,
    )
    known = known.model_copy(update={"wholes": known.wholes | {model.sha256: found}})
    if not launches:
        return known
    nodes = list(predict_nodes(model, Clock(pace, known, model.sha256)))
    products = sum(each.time for each in nodes if each.key)
    shortest = min(map(min, launches))
    slowest = max(summarize_samples(each).p95 for each in launches)
    rest = max(shortest - products, shortest / 50)
    measured = {
        # Alone, a convolution arranges values that the next one takes as they are.
        "share": round(min((shortest - rest) / products, 1.0), 3) if products else 1.0,
        "ns": rest,
        "tail": round(slowest / shortest, 3),
    }
    found = found.model_copy(update=measured)
    return known.model_copy(update={"wholes": known.wholes | {model.sha256: found}})


def _time_plans(bench: _Bench, model: Model, forms: Sequence[Model], known: Times) -> Times:
    """Add what products take in plans for each ns that they take alone, where none told yet.

    Two run: the form that a profile tries first, and that of fewest bytes; kinds that are in
    neither are as the mean of both. Of MiniLM-L6 on x86-64 products in other forms than its own
    take 0.58 to 0.68 of what they take alone; those of other models take other shares.
    """
    from edgeopt.compress.pace import Clock, pace_of, predict_nodes, sum_changed

    pace = pace_of(bench.run.job.target, threads=bench.run.job.threads)
    plain = Clock(pace)
    source = list(predict_nodes(model, plain))
    plans = [list(predict_nodes(each, plain)) for each in forms]
    kinds = [set(sum_changed(source, nodes)) for nodes in plans]
    sizes = [sum(each.stored for each in nodes) for nodes in plans]
    changed = [number for number in range(len(forms)) if kinds[number]]
    if not changed:
        return known
    for number in (changed[0], min(changed, key=sizes.__getitem__)):
        untold = kinds[number] - set(known.wholes[model.sha256].scales)
        if not untold:
            continue
        clock = Clock(pace, known, model.sha256)
        nodes = list(predict_nodes(forms[number], clock))
        shares = sum_changed(predict_nodes(model, clock), nodes)
        try:
            shortest = min(_time_model(bench, forms[number]))
        except (BoardIncompatible, BudgetExceeded):
            continue
        missing = shortest - sum(each.time for each in nodes)
        known = known.corrected(model.sha256, shares, missing)
    told = known.wholes[model.sha256].scales
    if not told:
        return known
    usual = round(statistics.fmean(told.values()), 3)
    rest = {kind: usual for kind in sorted(set().union(*kinds)) if kind not in told}
    return known.learned(model.sha256, scales=rest)


def _read(run: Run) -> Times:
    job, version = run.job, edgeopt.__version__
    tiles = digest_tiles(job.tiles)
    if job.times is None:
        return Times(edgeopt=version, threads=job.threads, tiles=tiles)
    return read_times(job.times, edgeopt=version, threads=job.threads, tiles=tiles)


def _keep(run: Run, known: Times) -> None:
    if run.job.times is not None:
        write_times(run.job.times, known)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A product in one form, as a model of its own."""

    #: See name_kernel.
    key: str
    kind: str
    bound: float
    #: Bytes of the other products' weights in that form.
    cold: int
    model: Model


def _missing(
    run: Run, model: Model, forms: Sequence[Model], known: Times, folder: Path
) -> Iterator[_Kernel]:
    """Yield the products, in every form that plans may give them, that were not measured yet."""
    from edgeopt.compress.pace import Clock, pace_of, predict_nodes
    from edgeopt.model.product import distinct, extract_product, inferred, list_products

    clock = Clock(pace_of(run.job.target, threads=run.job.threads))
    seen = set(known.kernels)
    weights = sum(each.stored for each in predict_nodes(model, clock))
    for number, made in enumerate(forms):
        every = list(predict_nodes(made, clock))
        nodes = {each.key: each for each in every if each.key}
        stored = sum(each.stored for each in every)
        whole = inferred(made)
        for product in distinct(list_products(whole))[:_SHAPES]:
            name = name_kernel(product.key, weights)
            if name in seen or product.key not in nodes:
                continue
            seen.add(name)
            own = folder / f"{number}-{len(seen)}"
            node = nodes[product.key]
            extracted = extract_product(made, product, directory=own, whole=whole)
            yield _Kernel(name, node.kind, node.bound, stored - node.stored, extracted)


def _forms(run: Run, model: Model, folder: Path) -> Iterator[Model]:
    """Yield the model with all its weights in each form that has a kernel of its own."""
    import onnx

    from edgeopt.compress.forecast import nearest
    from edgeopt.compress.hollow import hollow_model
    from edgeopt.compress.mixable import mixable_choices
    from edgeopt.compress.plan import apply_plan, make_plan
    from edgeopt.compress.sparse_choices import zeroed_weights
    from edgeopt.model.oracle import seeded_inputs

    methods, zeros = run.job.profile.methods, run.job.profile.sparsify
    # How many values are below a threshold weights without values cannot say.
    zeros = zeros if zeros is not None and zeros.known else None
    drawn = {name: each[None] for name, each in seeded_inputs(model, 0).items()}
    plain = make_plan(model, "float32", directory=folder)
    every = [each.weight for each in plain.choices]
    kept = zeroed_weights(onnx.load(model.path))
    hollow = hollow_model(model, every, folder / "hollow", values=True, kept=kept)
    yield hollow
    plans = [
        make_plan(model, each, samples=drawn, directory=folder, zeros=zeros) for each in methods
    ]
    mixed = mixable_choices(model, methods, reconstruct=False, effort=run.job.effort)
    plans += [Plan(name="times", choices=each) for each in _uniform(mixed)]
    for number, plan in enumerate(plans):
        bare = plan.model_copy(update={"choices": tuple(map(nearest, plan.choices))})
        yield apply_plan(hollow, bare, directory=folder / f"form{number}")


def _uniform(possible: Mapping[str, Sequence[Choice]]) -> list[tuple[Choice, ...]]:
    """Return, for each form of codes in blocks, all weights that can have it in it.

    Tables are looked up by rows, which takes next to nothing; factors are products of smaller
    weights, whose kinds are measured; and a weight instead of another is one of those here.
    """
    forms: dict[tuple[object, ...], tuple[Choice, ...]] = {}
    for found in possible.values():
        if any(each.method == "int8-rows" for each in found):
            continue
        for each in found:
            if each.rank is None and each.like is None:
                form = (each.method, each.block, each.group, each.rows, each.width, each.zeros)
                forms[form] = (*forms.get(form, ()), each)
    return list(forms.values())


def _time_nothing(bench: _Bench, *, cold: int) -> float:
    """Return the ns of a call that computes nothing to speak of."""
    from edgeopt.model.describe import facts
    from edgeopt.model.load import read_model

    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", [value], [output])
    one = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = bench.folder / "nothing.onnx"
    onnx.save_model(one, path)
    # The usual one, as of kernels: what the other bytes drove out comes back in most calls.
    nothing = read_model(path, facts(one), provenance=())
    return statistics.median(_time_model(bench, nothing, cold=cold))


def _time_model(bench: _Bench, model: Model, *, cold: int = 0) -> Sequence[int]:
    from edgeopt.compile import compile_model

    job = bench.run.job
    bundle = compile_model(
        model,
        job.target,
        directory=bench.folder / "bundle",
        cache=bench.run.store.root,
        threads=job.threads,
        allow_unscheduled=True,
        tiles=job.tiles,
    )
    return _launch(bench, model, bundle, cold=cold)


def _launch(bench: _Bench, model: Model, bundle: Bundle, *, cold: int = 0) -> Sequence[int]:
    """Run a bundle often enough, and leave nothing of it on the board.

    cold: bytes of other memory that are read before each call, see run_cold.
    """
    from edgeopt.deploy import discard_release, stage_bundle
    from edgeopt.model.oracle import seeded_inputs

    job = bench.run.job
    cold = min(cold, _MOST_COLD, int(_SPARE * bench.facts.ram_available))
    feeds = {name: each[None] for name, each in seeded_inputs(model, 0).items()}
    release = stage_bundle(bundle, bench.board, facts=bench.facts, app=job.app, root=ROOT)

    def launch(count: int) -> Sequence[int]:
        done = run_cold(
            cold,
            release,
            bundle,
            bench.board,
            feeds=feeds,
            iterations=count,
            threads=job.threads,
            directory=bench.folder,
        )
        return done.report.samples_ns

    try:
        usual = statistics.median(launch(_PROBE)) + _PER_BYTE * cold
        return launch(max(_FEWEST, min(_MOST, round(_TIMED_NS / max(usual, 1.0)))))
    finally:
        discard_release(release, bench.board)
