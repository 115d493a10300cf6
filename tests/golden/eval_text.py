"""Writes eval_text.txt: the opening chapters of Jane Austen's "Persuasion" (1817, public domain).

The novel is taken from the Debian package `r-cran-janeaustenr`, unpacked with `dpkg-deb -x`. R stores
its data sets in one `.rdb` file of compressed chunks; each chunk here is one novel as a vector of
lines. The lines are joined to paragraphs, so that a language model is judged on prose and not on
where a book was wrapped.
"""

import argparse
import re
import struct
import zlib
from pathlib import Path

CHARSXP = 9  # the type in the low byte of an R string's flags
OPENING = "Sir Walter Elliot, of Kellynch Hall, in Somersetshire"


def chunks(rdb: bytes):
    """Yields the decompressed chunks: a big-endian u32 of the size to come, then zlib data."""
    offset = 0
    while offset + 4 < len(rdb):
        (size_bytes,) = struct.unpack_from(">I", rdb, offset)
        stream = zlib.decompressobj()
        data = stream.decompress(rdb[offset + 4 :])
        assert len(data) == size_bytes, f"chunk at {offset}: {len(data)} bytes, expected {size_bytes}"
        offset = len(rdb) - len(stream.unused_data)
        yield data


def lines(chunk: bytes):
    """Yields the strings of an XDR-serialised R character vector."""
    start = chunk.find(OPENING.encode())
    # The header and the vector's length differ in size between versions: find the first string.
    offset = next(o for o in range(0, 64) if chunk[o + 3 : o + 4] == bytes([CHARSXP]) and chunk[o] == 0)
    assert offset < start
    while offset + 8 <= len(chunk) and chunk[offset + 3] == CHARSXP:
        (length,) = struct.unpack_from(">i", chunk, offset + 4)
        length = max(length, 0)  # -1 is NA
        yield chunk[offset + 8 : offset + 8 + length].decode("utf-8")
        offset += 8 + length


def paragraphs(novel):
    """Joins wrapped lines; an empty line ends a paragraph."""
    paragraph: list[str] = []
    for line in [*novel, ""]:
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield re.sub(r" +", " ", " ".join(paragraph))
            paragraph = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rdb", type=Path, required=True, help="usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("eval_text.txt"))
    parser.add_argument("--min-bytes", type=int, default=120_000, help="stop at the first paragraph past this")
    args = parser.parse_args()

    novel = next(chunk for chunk in chunks(args.rdb.read_bytes()) if OPENING.encode() in chunk)
    text = ""
    for paragraph in paragraphs(lines(novel)):
        if re.fullmatch(r"chapter \d+|persuasion|by|jane austen|\(\d+\)|finis", paragraph, re.IGNORECASE):
            continue
        text += paragraph + "\n\n"
        if len(text.encode()) >= args.min_bytes:
            break
    args.out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
