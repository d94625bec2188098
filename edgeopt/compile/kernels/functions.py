"""exp, erf, tanh and their kin as polynomials: libm's are scalar calls that cannot vectorize."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from tvm import tirx

Value: TypeAlias = tirx.Expr


def number(value: float) -> Value:
    """Make a float32 constant."""
    return tirx.const(value, "float32")


def _polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    """Evaluate by Horner's rule, the highest power first."""
    result = number(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + number(coefficient)
    return result


def clamp(x: Value, low: float, high: float) -> Value:
    """Limit a float32 value."""
    return tirx.max(tirx.min(x, number(high)), number(low))


def exp(x: Value, *, highest: float = 88.0) -> Value:
    """Compute e^x within 2 ulp: x = n ln 2 + f, and 2^n times a polynomial in f.

    Arguments are limited to what float32 can hold; above the highest they must not be. The sum
    with 1.5 * 2^23 leaves no room for a fraction, and the exponent of 2^n in its lowest bits. At
    n = -127 those bits are those of zero: what a mask excludes is exactly 0, not a subnormal, which
    x86 multiplies a hundred times slower.
    ln 2 is split as in Cephes' expf; the coefficients are minimax for the relative error. float64
    is libm's.
    """
    if x.ty.dtype == "float64":
        return tirx.exp(x)
    x = tirx.max(x, number(-88.0))
    if highest > 0.0:
        x = tirx.min(x, number(highest))
    shift = number(1.5 * 2.0**23 + 127)
    bits = tirx.reinterpret("int32", x * number(1.44269504) + shift)
    # Read as bits, because TVM would simplify x + c - c.
    n = tirx.reinterpret("float32", bits) - shift
    f = x - n * number(0.693359375)
    f = f - n * number(-2.12194440e-4)
    coefficients = (
        1.3843420892953873e-3,
        8.374308235943317e-3,
        4.1668012738227844e-2,
        1.6666430234909058e-1,
        4.999999403953552e-1,
        1.0,
    )
    power = tirx.reinterpret("float32", tirx.shift_left(bits, tirx.const(23, "int32")))
    return (f * power) * _polynomial(f, coefficients) + power


def erf(x: Value) -> Value:
    """Compute the error function within 3.2e-7 absolute, as Eigen's rational approximation does."""
    x = clamp(x, -3.832506856900711, 3.832506856900711)
    numerator = (
        1.128379143519084,
        0.18520832239976145,
        0.050955695062380861,
        0.0034082910107109506,
        0.00022905065861350646,
    )
    denominator = (
        1.0,
        0.49746925110067538,
        0.11098505178285362,
        0.014070470171167667,
        0.0010179625278914885,
        0.000023547966471313185,
        -1.1791602954361697e-7,
    )
    return _odd_quotient(x, numerator, denominator)


def tanh(x: Value) -> Value:
    """Compute tanh within 4.3 ulp by a rational approximation, minimax for the relative error.

    The quotient of exponentials would lose all digits near zero.
    """
    x = clamp(x, -7.9, 7.9)
    numerator = (
        0.999999994361343,
        0.13450641956105636,
        0.003579017365911154,
        2.202366093198156e-05,
        1.5428549089172536e-08,
    )
    denominator = (
        1.0,
        0.4678396996639969,
        0.026192334483786352,
        0.00034236919277439375,
        8.599015809979712e-07,
    )
    return _odd_quotient(x, numerator, denominator)


def _odd_quotient(x: Value, numerator: tuple[float, ...], denominator: tuple[float, ...]) -> Value:
    """Compute x P(x^2) / Q(x^2), the lowest power first, with the powers that both share.

    A highest coefficient of 1 takes no multiplication.
    A multiply-add of ARM overwrites what it adds to: Horner's rule copies every coefficient.
    """
    powers = [x * x]
    while len(powers) < max(len(numerator), len(denominator)) - 1:
        half = len(powers) // 2
        powers.append(powers[half] * powers[len(powers) - 1 - half])
    return x * _sum_powers(powers, numerator) / _sum_powers(powers, denominator)


def _sum_powers(powers: list[Value], coefficients: tuple[float, ...]) -> Value:
    """Add up a polynomial, the highest power first, whose terms are the smallest near zero."""
    count = len(coefficients) - 1
    highest = coefficients[count]
    result = powers[count - 1] if highest == 1.0 else powers[count - 1] * number(highest)
    for place in range(count - 1, 0, -1):
        result = powers[place - 1] * number(coefficients[place]) + result
    return result + number(coefficients[0])


def sigmoid(x: Value) -> Value:
    """Compute 1 / (1 + e^-x)."""
    return number(1.0) / (number(1.0) + exp(-x))


def tanh_within(x: Value) -> Value:
    """Compute tanh within 4e-7 absolute: a term less than tanh, minimax for the absolute error.

    It never leaves [-1, 1]. A cell adds or multiplies it with values of that size, where the
    smaller relative error of tanh near zero is lost.
    """
    x = clamp(x, -8.0, 8.0)
    numerator = (4133019.0, 533667.1875, 12140.3701171875, 46.68678283691406)
    denominator = (4133021.75, 1911331.25, 98191.8671875, 978.84228515625, 1.0)
    return _odd_quotient(x, numerator, denominator)


def sigmoid_within(x: Value) -> Value:
    """Compute 1 / (1 + e^-x) within 2.4e-7 absolute, as (1 + tanh(x / 2)) / 2.

    Beside tanh_within it shares all constants, which then stay in registers.
    """
    half = number(0.5)
    return tanh_within(x * half) * half + half


def round_to_int(x: Value) -> Value:
    """Round a float32 below 2^22 to int32, ties to even, as ONNX defines QuantizeLinear.

    Adding 1.5 * 2^23 leaves no room for a fraction, and the sum's bits count from there on. It is
    read as bits because TVM would simplify x + c - c; ARMv7 has no vector instruction that rounds.
    """
    bits = tirx.reinterpret("int32", x + number(1.5 * 2.0**23))
    return bits - tirx.const(0x4B400000, "int32")


def encode(value: Value, dtype: str, limits: tuple[int, int, int]) -> Value:
    """Round to a code of 8 bits: limits are the lowest and the highest code, and the zero point."""
    low, high, zero = limits
    value = clamp(value, float(low - zero), float(high - zero))
    return tirx.Cast(dtype, round_to_int(value) + tirx.const(zero, "int32"))


def encode_saturated(value: Value, dtype: str, limits: tuple[int, int, int]) -> Value:
    """Round to a code as encode does, by what 64-bit ARM's vectors saturate on the way.

    FCVTNS rounds ties to even, and SQXTN, which LLVM makes of limits and a narrower type, limits
    what it narrows; so do SQADD and SQXTUN. NaN becomes the zero point's code.
    """
    low, high, zero = limits
    even = tirx.call_llvm_pure_intrin("float32", "llvm.roundeven", value)
    whole = tirx.call_llvm_pure_intrin("int32", "llvm.fptosi.sat", even)
    code = _narrow(whole, "int16")
    if zero:
        added = tirx.const(zero, "int16")
        code = tirx.call_llvm_pure_intrin("int16", "llvm.sadd.sat", code, added)
    code = code if low == np.iinfo(dtype).min else tirx.max(code, tirx.const(low, "int16"))
    code = code if high == np.iinfo(dtype).max else tirx.min(code, tirx.const(high, "int16"))
    return _narrow(code, dtype)


def _narrow(value: Value, dtype: str) -> Value:
    """Limit an integer to a narrower type and convert it."""
    info = np.iinfo(dtype)
    limits = (tirx.const(int(limit), value.ty.dtype) for limit in (info.min, info.max))
    low, high = limits
    return tirx.Cast(dtype, tirx.min(tirx.max(value, low), high))


def round_half_even(x: Value) -> Value:
    """Round to the nearest integer, ties to even, as ONNX defines Round.

    Beyond 2^22 a float32 is returned as it is, which is right from 2^23 on.
    """
    return tirx.Select(tirx.abs(x) < number(2.0**22), tirx.Cast("float32", round_to_int(x)), x)


def float_of_long(x: Value) -> Value:
    """Convert int64 to float32 without the library call that 32-bit machines would make.

    Exact to the last digit where the value fits int32; beyond, rounded twice.
    """
    low = tirx.Cast("int32", x)
    high = tirx.Cast("float32", tirx.Cast("int32", tirx.shift_right(x, tirx.const(32, "int64"))))
    wide = high * number(2.0**32) + tirx.Cast("float32", tirx.Cast("uint32", x))
    return tirx.Select(x.equal(tirx.Cast("int64", low)), tirx.Cast("float32", low), wide)


def choose_level(
    word: tirx.Expr, place: tirx.Expr, bits: int, read: Callable[[int], tirx.Expr]
) -> tirx.Expr:
    """Choose what a code of a word stands for, by its bits from the highest, in all lanes alike.

    place: counts codes from the lowest bits on; read: gives one of the 2 ** bits levels.
    """

    def choose(first: int, left: int) -> tirx.Expr:
        if left == 0:
            return read(first)
        bit = tirx.shift_right(word, place * bits + (left - 1))
        upper, lower = choose(first + (1 << left - 1), left - 1), choose(first, left - 1)
        return tirx.Select(tirx.bitwise_and(bit, tirx.const(1, "int32")) > 0, upper, lower)

    return choose(0, bits)
