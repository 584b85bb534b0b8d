"""What Linux makes of an initramfs: compressed and plain cpio archives in any mixture, one behind the other.

Source: Linux init/initramfs.c. Zero bytes between archives are skipped.
"""

from __future__ import annotations

from enclavedbg.eif.compression import LZ4_BLOCK_SIZE, detect, lz4_blocks, unpack, zstd_frame
from enclavedbg.eif.cpio import archive_end, skip_zeros
from enclavedbg.errors import EifError

STREAM_LIMIT = 4096
"""Archives in one ramdisk; an image has two or three."""
TYPICAL_RATIO = 4
DEFLATE_MAX_RATIO = 1032


def decompress(data: bytes | memoryview, *, limit: int) -> bytes:
    """All archives of `data`, unpacked and each padded to four bytes: what `enclavedbg.eif.cpio.read_newc` reads.

    Raises EifError when a part is damaged or in an unknown format, or when the result would pass `limit` bytes.
    """
    view = memoryview(data).toreadonly().cast("B")
    parts: list[bytes | memoryview] = []
    total = 0
    position = skip_zeros(view, 0)
    while position < len(view):
        if len(parts) >= 2 * STREAM_LIMIT:
            raise EifError(f"the ramdisk has more than {STREAM_LIMIT} archives; join them")
        part: bytes | memoryview
        if bytes(view[position : position + 4]) == b"0707":
            end = archive_end(view, position)
            part = view[position:end]
        else:
            try:
                unpacked = unpack(view[position:], limit=limit - total)
            except EifError as error:
                raise EifError(f"the ramdisk's part at byte {position:#x}: {error}") from error
            part, end = unpacked.data, position + unpacked.consumed
        total += len(part) + -len(part) % 4
        if total > limit:
            raise EifError(f"the ramdisk unpacks to more than the {limit} bytes that it may; give it more memory")
        parts += (part, bytes(-len(part) % 4))
        position = skip_zeros(view, end)
    return b"".join(parts)


def unpacked_size(data: bytes | memoryview) -> int:
    """An estimate, in bytes, of what `data` unpacks to, from its headers alone.

    Never more than the format could hold in `data`; only the first archive's format is looked at.
    """
    view = memoryview(data).toreadonly().cast("B")
    match detect(view):
        case "gzip":
            # The last four bytes of the stream, if nothing follows it.
            stated = int.from_bytes(view[-4:], "little")
            return stated if len(view) // 2 <= stated <= len(view) * DEFLATE_MAX_RATIO else len(view) * TYPICAL_RATIO
        case "zstd":
            try:
                frame = zstd_frame(view)
            except EifError:
                return len(view) * TYPICAL_RATIO
            return frame.at_most if frame.content_size is None else min(frame.content_size, frame.at_most)
        case "lz4":
            try:
                blocks = lz4_blocks(view)
            except EifError:
                return len(view) * TYPICAL_RATIO
            return max(len(blocks) - 1, 0) * LZ4_BLOCK_SIZE + sum(size for _, size in blocks[-1:]) * TYPICAL_RATIO
        case None:
            return len(view)
        case _:
            return len(view) * TYPICAL_RATIO
