"""GGUF's block formats, element by element from their definitions: random blocks and their values,
to hold the program's against. Standard library only."""
import struct

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def f16(block, at):
    return struct.unpack_from("<e", block, at)[0]


def bits(byte, shift, n):
    return byte >> shift & (1 << n) - 1


def nibble(block, at, e):
    """Element e of 32: the low nibbles are elements 0 to 15."""
    return bits(block[at + e % 16], 0 if e < 16 else 4, 4)


def fifth(block, at, e):
    return bits(block[at + e // 8], e % 8, 1) << 4


def plane2(block, at, e):
    """Two bits of element e of 256: 32 bytes hold 128 elements, 32 a shift."""
    return bits(block[at + e // 128 * 32 + e % 32], e % 128 // 32 * 2, 2)


def q3_scale(block, e):
    r = e // 16
    low = bits(block[96 + r % 8], 4 * (r // 8), 4)
    return (low + 16 * bits(block[104 + r % 4], 2 * (r // 4), 2)) - 32


def q3(block, e):
    return plane2(block, 32, e) + 4 * bits(block[e % 32], e // 32, 1) - 4


def q4_scale_min(block, e):
    r, s = e // 32, block[4:16]
    if r < 4:
        return s[r] % 64, s[4 + r] % 64
    return s[4 + r] % 16 + 16 * (s[r - 4] // 64), s[4 + r] // 16 + 16 * (s[r] // 64)


def q4(block, at, e):
    return bits(block[at + e // 64 * 32 + e % 32], e % 64 // 32 * 4, 4)


def q4_k(block, e, code):
    scale, low = q4_scale_min(block, e)
    return f16(block, 0) * scale * code - f16(block, 2) * low


def q5(block, e):
    return q4(block, 48, e) + 16 * bits(block[16 + e % 32], e // 32, 1)


def q6(block, e):
    low = bits(block[e // 128 * 64 + e % 64], e % 128 // 64 * 4, 4)
    return low + 16 * plane2(block, 128, e) - 32


def signed(byte):
    return byte - 256 if byte > 127 else byte


def iq4_xs_scale(block, e):
    r = e // 32
    high = bits(block[2 + r // 4], r % 4 * 2, 2)
    return bits(block[4 + r // 2], r % 2 * 4, 4) + 16 * high - 32


def trit(byte, n):
    """The byte is ceil(256 x / 243), x of five digits in base 3, the first the highest."""
    x = byte * 243 // 256
    return x // 3 ** (4 - n) % 3 - 1


def tq1(block, e):
    if e < 160:
        return trit(block[e % 32], e // 32)
    if e < 240:
        return trit(block[32 + e % 16], (e - 160) // 16)
    return trit(block[48 + e % 4], (e - 240) // 4)


# name: (ggml's number, elements, bytes, where its f16 numbers stand, value of element e)
TYPES = {
    "q4_0": (2, 32, 18, [0], lambda b, e: f16(b, 0) * (nibble(b, 2, e) - 8)),
    "q4_1": (3, 32, 20, [0, 2], lambda b, e: f16(b, 0) * nibble(b, 4, e) + f16(b, 2)),
    "q5_0": (6, 32, 22, [0],
             lambda b, e: f16(b, 0) * (nibble(b, 6, e) + fifth(b, 2, e) - 16)),
    "q5_1": (7, 32, 24, [0, 2],
             lambda b, e: f16(b, 0) * (nibble(b, 8, e) + fifth(b, 4, e)) + f16(b, 2)),
    "q8_0": (8, 32, 34, [0], lambda b, e: f16(b, 0) * signed(b[2 + e])),
    "q2_k": (10, 256, 84, [80, 82], lambda b, e: f16(b, 80) * (b[e // 16] % 16) * plane2(b, 16, e)
             - f16(b, 82) * (b[e // 16] // 16)),
    "q3_k": (11, 256, 110, [108], lambda b, e: f16(b, 108) * q3_scale(b, e) * q3(b, e)),
    "q4_k": (12, 256, 144, [0, 2], lambda b, e: q4_k(b, e, q4(b, 16, e))),
    "q5_k": (13, 256, 176, [0, 2], lambda b, e: q4_k(b, e, q5(b, e))),
    "q6_k": (14, 256, 210, [208], lambda b, e: f16(b, 208) * signed(b[192 + e // 16]) * q6(b, e)),
    "iq4_nl": (20, 32, 18, [0], lambda b, e: f16(b, 0) * IQ4[nibble(b, 2, e)]),
    "iq4_xs": (23, 256, 136, [0], lambda b, e: f16(b, 0) * iq4_xs_scale(b, e)
               * IQ4[nibble(b, 8 + e // 32 * 16, e % 32)]),
    "tq1_0": (34, 256, 54, [52], lambda b, e: f16(b, 52) * tq1(b, e)),
    "tq2_0": (35, 256, 66, [64], lambda b, e: f16(b, 64) * (plane2(b, 0, e) - 1)),
}


def random_blocks(name, n_elems, random):
    """Random codes and scales; the f16 numbers small, of both signs. A byte of five trits is one
    that an encoder makes."""
    _, elems, size, halves, _ = TYPES[name]
    data = b""
    for _ in range(n_elems // elems):
        block = bytearray(random.randrange(256) for _ in range(size))
        if name == "tq1_0":
            block[:52] = bytes((random.randrange(243) * 256 + 242) // 243 for _ in range(52))
        for at in halves:
            struct.pack_into("<e", block, at, random.uniform(-1e-3, 1e-3))
        data += block
    return data


def values(name, data):
    """Exact in double, rounded once to f32."""
    _, elems, size, _, value = TYPES[name]
    wide = [value(data[at:at + size], e) for at in range(0, len(data), size) for e in range(elems)]
    return struct.unpack(f"<{len(wide)}f", struct.pack(f"<{len(wide)}f", *wide))
