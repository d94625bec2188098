"""QuantizeLinear and DequantizeLinear: codes pass by each other without becoming floats."""

from tvm import relax

from edgeopt.compile.code_table import look_up_codes
from edgeopt.compile.encoding import Encoding, read_encoding
from edgeopt.compile.kernels import elementwise
from edgeopt.compile.recode import add_codes, join_codes, pass_codes
from edgeopt.compile.requantize import encode_sum
from edgeopt.compile.site import Relabelled, Site


def lower_dequantize(site: Site, call: relax.Call) -> relax.Expr | None:
    """Decode what a quantizer stored in the type that the CPU multiplies, as it is stored."""
    source = site.bound(call.args[0])
    found = next((each for each in site.relabelled if each.call.same_as(source)), None)
    encoding = read_encoding(call, call.args[0].ty.dtype.dtype)
    if found is None or encoding is None:
        return None
    return encoding.preferred(site).decode(site, found.codes)


def lower_quantize(site: Site, call: relax.Call) -> relax.Expr | None:
    """Encode, best without a float in between, in the type that the CPU multiplies."""
    given = read_encoding(call, call.ty.dtype.dtype)
    if given is None:
        return None
    wanted = given.preferred(site)
    codes = _without_floats(site, call.args[0], wanted)
    if codes is None and wanted == given:
        return None
    if codes is None:
        codes = site.emit(
            relax.op.quantize(call.args[0], *wanted.constants(), axis=0, out_dtype=wanted.dtype)
        )
    if wanted == given:
        return codes
    labelled = site.call(elementwise.define_flip(given.dtype), codes, name="flip")
    site.relabelled.append(Relabelled(site.bound(labelled), codes))
    return labelled


def _without_floats(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    for way in (pass_codes, encode_sum, look_up_codes, join_codes, add_codes):
        codes = way(site, expr, wanted)
        if codes is not None:
            return codes
    return None
