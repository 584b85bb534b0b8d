"""target.xml, GDB's description of the registers, generated from the table in `registers`.

GDB manual, appendix "Target Descriptions"; the bits are those of the Intel SDM volume 3, 2.5 and 2.2.1.
"""

from __future__ import annotations

from itertools import groupby
from xml.sax.saxutils import quoteattr

from enclavedbg.gdbstub.registers import CORE, REGISTERS, SSE, SYSTEM

Bits = tuple[tuple[str, int, int], ...]
"""Name, first and last bit of each field."""


def _bits(**fields: int | tuple[int, int]) -> Bits:
    return tuple((name, *(place if isinstance(place, tuple) else (place, place))) for name, place in fields.items())


FLAGS: dict[str, tuple[str, int, Bits]] = {
    "x86_eflags": (CORE, 4, (
        *_bits(CF=0), ("", 1, 1), *_bits(PF=2, AF=4, ZF=6, SF=7, TF=8, IF=9, DF=10, OF=11, NT=14,
                                         RF=16, VM=17, AC=18, VIF=19, VIP=20, ID=21),
    )),
    "i386_mxcsr": (SSE, 4, _bits(
        IE=0, DE=1, ZE=2, OE=3, UE=4, PE=5, DAZ=6, IM=7, DM=8, ZM=9, OM=10, UM=11, PM=12, FZ=15,
    )),
    "x86_cr0": (SYSTEM, 8, _bits(PE=0, MP=1, EM=2, TS=3, ET=4, NE=5, WP=16, AM=18, NW=29, CD=30, PG=31)),
    "x86_cr3": (SYSTEM, 8, _bits(PWT=3, PCD=4, PDBR=(12, 51))),
    "x86_cr4": (SYSTEM, 8, _bits(
        VME=0, PVI=1, TSD=2, DE=3, PSE=4, PAE=5, MCE=6, PGE=7, PCE=8, OSFXSR=9, OSXMMEXCPT=10, UMIP=11, LA57=12,
        VMXE=13, SMXE=14, FSGSBASE=16, PCIDE=17, OSXSAVE=18, SMEP=20, SMAP=21, PKE=22, CET=23, PKS=24,
    )),
    "x86_efer": (SYSTEM, 8, _bits(SCE=0, LME=8, LMA=10, NXE=11, SVME=12, LMSLE=13, FFXSR=14, TCE=15)),
}  # fmt: skip
"""Bit sets by type name: the feature that defines it, its size in bytes, its fields."""

_VECTORS = (
    ("v4f", "ieee_single", 4),
    ("v2d", "ieee_double", 2),
    ("v16i8", "int8", 16),
    ("v8i16", "int16", 8),
    ("v4i32", "int32", 4),
    ("v2i64", "int64", 2),
)
_VEC128 = (
    ("v4_float", "v4f"),
    ("v2_double", "v2d"),
    ("v16_int8", "v16i8"),
    ("v8_int16", "v8i16"),
    ("v4_int32", "v4i32"),
    ("v2_int64", "v2i64"),
    ("uint128", "uint128"),
)


def _types(feature: str) -> list[str]:
    lines = []
    if feature == SSE:
        lines += [f'<vector id="{name}" type="{kind}" count="{count}"/>' for name, kind, count in _VECTORS]
        fields = "".join(f'<field name="{name}" type="{kind}"/>' for name, kind in _VEC128)
        lines.append(f'<union id="vec128">{fields}</union>')
    for name, (where, size, bits) in FLAGS.items():
        if where == feature:
            fields = "".join(f'<field name="{field}" start="{low}" end="{high}"/>' for field, low, high in bits)
            lines.append(f'<flags id="{name}" size="{size}">{fields}</flags>')
    return lines


def _target_xml() -> str:
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        '<target version="1.0">',
        "<architecture>i386:x86-64</architecture>",
        "<osabi>GNU/Linux</osabi>",
    ]
    for feature, members in groupby(enumerate(REGISTERS), lambda numbered: numbered[1].feature):
        lines.append(f'<feature name="{feature}">')
        lines += _types(feature)
        for number, register in members:
            group = f" group={quoteattr(register.group)}" if register.group else ""
            lines.append(
                f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"'
                f' regnum="{number}"{group}/>'
            )
        lines.append("</feature>")
    lines.append("</target>")
    return "\n".join(lines) + "\n"


TARGET_XML = _target_xml()
