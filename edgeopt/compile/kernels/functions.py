"""exp, erf, tanh and their kin as polynomials: libm's are scalar calls that cannot vectorize."""

from typing import TypeAlias

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


def exp(x: Value) -> Value:
    """Compute e^x within 2 ulp: x = n ln 2 + f, a polynomial in f, and n added to the exponent.

    Constants are those of Cephes' expf. Arguments are limited to what float32 can hold.
    """
    x = clamp(x, -87.0, 88.0)
    n = tirx.floor(x * number(1.44269504) + number(0.5))
    f = x - n * number(0.693359375)
    f = f - n * number(-2.12194440e-4)
    coefficients = (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
    y = _polynomial(f, coefficients) * f * f + f + number(1.0)
    exponent = tirx.Cast("int32", n) + tirx.const(127, "int32")
    power = tirx.shift_left(exponent, tirx.const(23, "int32"))
    return y * tirx.reinterpret("float32", power)


def erf(x: Value) -> Value:
    """Compute the error function within 2e-7 absolute, as Eigen's rational approximation does."""
    x = clamp(x, -3.832506856900711, 3.832506856900711)
    square = x * x
    numerator = (
        0.00022905065861350646,
        0.0034082910107109506,
        0.050955695062380861,
        0.18520832239976145,
        1.128379143519084,
    )
    denominator = (
        -1.1791602954361697e-7,
        0.000023547966471313185,
        0.0010179625278914885,
        0.014070470171167667,
        0.11098505178285362,
        0.49746925110067538,
        1.0,
    )
    return x * _polynomial(square, numerator) / _polynomial(square, denominator)


def tanh(x: Value) -> Value:
    """Compute tanh within 4 ulp, as Eigen's rational approximation does.

    The quotient of exponentials would lose all digits near zero.
    """
    x = clamp(x, -7.90531110763549805, 7.90531110763549805)
    square = x * x
    numerator = (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    )
    denominator = (
        1.19825839466702e-06,
        1.18534705686654e-04,
        2.26843463243900e-03,
        4.89352518554385e-03,
    )
    return x * _polynomial(square, numerator) / _polynomial(square, denominator)


def sigmoid(x: Value) -> Value:
    """Compute 1 / (1 + e^-x)."""
    return number(1.0) / (number(1.0) + exp(-x))


def round_to_int(x: Value) -> Value:
    """Round a float32 below 2^22 to int32, ties to even, as ONNX defines QuantizeLinear.

    Adding 1.5 * 2^23 leaves no room for a fraction, and the sum's bits count from there on. It is
    read as bits because TVM would simplify x + c - c; ARMv7 has no vector instruction that rounds.
    """
    bits = tirx.reinterpret("int32", x + number(1.5 * 2.0**23))
    return bits - tirx.const(0x4B400000, "int32")


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
