"""Arithmetic on integers of one type, in the type's own width: the CPU's definitions."""

from __future__ import annotations

from tilewright_kernels.cpu import integers as cpu
from tilewright_kernels.cuda.intrinsics import shared

add, subtract, multiply = shared(cpu.add), shared(cpu.subtract), shared(cpu.multiply)
negate, invert = shared(cpu.negate), shared(cpu.invert)
divide, remainder = shared(cpu.divide), shared(cpu.remainder)
floor_divide, floor_modulo = shared(cpu.floor_divide), shared(cpu.floor_modulo)
absolute, sign = shared(cpu.absolute), shared(cpu.sign)
minimum, maximum = shared(cpu.minimum), shared(cpu.maximum)
shift_left, shift_right = shared(cpu.shift_left), shared(cpu.shift_right)
power = shared(cpu.power)
