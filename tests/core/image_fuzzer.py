"""Push mutated pictures through the validator and the preprocessor, in a process of its own.

    python tests/core/image_fuzzer.py --seed 0 --count 10000 --case-file /tmp/case      one run
    python tests/core/image_fuzzer.py --seed 0 --first 4711 --count 1                   one case again

Every case follows from the seed and its number. Its number is written to the case file before it is tried, so that
a crash of the decoder's native code names its case. Anything but a result or an ImageError ends the process; so
does a case of more than 60 seconds. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import mmap
import resource
import signal
import sys
import time
from pathlib import Path

import image_samples
import numpy as np

from pillsnap.core.errors import ImageError
from pillsnap.core.image_header import read_header
from pillsnap.core.image_validator import LEAST_SIDE_PX, ImageValidator
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec

CASE_SECONDS = 60
SIDE = 32


def flip_bits(rng, data, _):
    changed = bytearray(data)
    for position in rng.integers(0, len(data), rng.integers(1, 20)):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def replace_bytes(rng, data, _):
    changed = bytearray(data)
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, 32))
    changed[start : start + length] = rng.bytes(min(length, len(data) - start))
    return bytes(changed)


def truncate(rng, data, _):
    return data[: rng.integers(len(data))]


def cut_out(rng, data, _):
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:start] + data[end:]


def repeat_part(rng, data, _):
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def splice(rng, data, other):
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


def edit_size(rng, data, _):
    """Another width and height in the first header that has one, small ones more often."""
    changed = bytearray(data)
    sides = [int(2 ** rng.uniform(0, 13.5)) - 1 for _ in range(2)]
    at, width, order = -1, 2, "big"
    if data[:2] == b"\xff\xd8":
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    elif data[:4] == b"\x89PNG":
        at, width = 16, 4
    elif data[12:16] == b"VP8X":
        at, width, order = 24, 3, "little"
    elif data[12:16] == b"VP8 ":
        at, order = 26, "little"
    for number, side in enumerate(sides):
        place = at + number * width
        changed[place : place + width] = side.to_bytes(width, order)
    return fixed_checksums(bytes(changed))


def parts_of(data):
    """A picture as its head and its segments or chunks, in a form that `"".join` puts together again."""
    if data[:4] == b"\x89PNG":
        chunks = image_samples.png_chunks(data)
        return image_samples.PNG_SIGNATURE, [image_samples.png([chunk])[8:] for chunk in chunks]
    if data[:4] == b"RIFF":
        parts, position = [], 12
        while position + 8 <= len(data):
            length = int.from_bytes(data[position + 4 : position + 8], "little")
            parts.append(data[position : position + 8 + length + length % 2])
            position += 8 + length + length % 2
        return data[:12], parts
    starts = [i for i in range(2, len(data) - 1) if data[i] == 0xFF and data[i + 1] not in (0, 0xFF)]
    return data[:2], [data[a:b] for a, b in itertools.pairwise([*starts, len(data)])]


def swap_parts(rng, data, other):
    """Chunks or segments in another order, lost, doubled, or taken from another picture."""
    head, parts = parts_of(data)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(max(len(parts), 1)))
        action = int(rng.integers(4))
        if action == 0:
            parts[place:place] = parts[int(rng.integers(max(len(parts), 1))) :][:1]
        elif action == 1:
            parts[place : place + 2] = parts[place : place + 2][::-1]
        elif action == 2:
            del parts[place : place + 1]
        else:
            foreign = parts_of(other)[1]
            parts[place:place] = foreign[int(rng.integers(max(len(foreign), 1))) :][:1]
    return head + b"".join(parts)


def fixed_checksums(data):
    """A PNG whose checksums are right again, so that the mutation gets past them."""
    return image_samples.png(image_samples.png_chunks(data)) if data[:4] == b"\x89PNG" else data


def repaired(data):
    """The same damage, but with an end and right checksums: it gets past the header to the decoder itself."""
    if data[:4] == b"\x89PNG":
        chunks = [chunk for chunk in image_samples.png_chunks(data) if chunk[0] != b"IEND"]
        return image_samples.png([*chunks, (b"IEND", b"")])
    if data[:4] == b"RIFF" and len(data) > 8:
        return data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
    return data + b"\xff\xd9"


MUTATIONS = (
    flip_bits,
    replace_bytes,
    truncate,
    cut_out,
    repeat_part,
    splice,
    edit_size,
    swap_parts,
)


def mutate(seed, number, samples):
    """Case ``number``: a sample and one to three mutations, the same each time."""
    rng = np.random.default_rng((seed, number))
    data, other = (samples[int(rng.integers(len(samples)))] for _ in range(2))
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        if len(data) > 2:
            data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, data, other)
    return repaired(data) if rng.random() < 0.6 else data


def outcome(call):
    try:
        call()
    except ImageError as error:
        return str(error.code)
    return "accepted"


class Pusher:
    """The doors that every case is pushed through."""

    def __init__(self):
        self.validator = ImageValidator()
        self.doors = [
            InferencePreprocessor(PreprocessingSpec(target_size=SIDE)),
            InferencePreprocessor(PreprocessingSpec(target_size=SIDE, decoding="reduced")),
        ]

    def push(self, data):
        """What happened; raises AssertionError where the doors contradict each other."""
        outcome(lambda: read_header(data))
        result = self.validator.validate(data, "photo.jpg")
        outcomes = [outcome(lambda door=door: door.prepare_for_model(data)) for door in self.doors]
        judged = "accepted" if result.ok else result.refusals[0].code
        if judged == "too_small":  # a rule of the validator and the server alone
            assert min(result.width, result.height) < LEAST_SIDE_PX
            judged = outcomes[0]
        if len({judged, *outcomes}) != 1:
            raise AssertionError(f"validator: {judged}, exact and reduced: {outcomes}")
        return judged


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--case-file", type=Path, default=None)
    options = parser.parse_args()
    samples = list(image_samples.make_samples().values())
    pusher, counts = Pusher(), collections.Counter()
    for sample in samples:
        if pusher.push(sample) != "accepted":
            raise AssertionError("a sample is refused before it was mutated")
    before = peak_mib()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even within native code
    case = mmap.mmap(-1, 8)
    if options.case_file:
        options.case_file.write_bytes(bytes(8))
        with options.case_file.open("r+b") as stream:
            case = mmap.mmap(stream.fileno(), 8)
    started, slowest = time.monotonic(), (0.0, 0)
    for number in range(options.first, options.first + options.count):
        case[:] = number.to_bytes(8, "little")
        signal.alarm(CASE_SECONDS)
        begun = time.monotonic()
        try:
            data = mutate(options.seed, number, samples)
            counts[pusher.push(data)] += 1
        except Exception:
            print(f"case {number} of seed {options.seed}", file=sys.stderr)
            raise
        slowest = max(slowest, (time.monotonic() - begun, number))
    signal.alarm(0)
    report = {
        "cases": options.count,
        "counts": dict(counts.most_common()),
        "peak_growth_mib": round(peak_mib() - before, 1),
        "seconds": round(time.monotonic() - started, 1),
        "slowest_s": round(slowest[0], 2),
        "slowest_case": slowest[1],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
