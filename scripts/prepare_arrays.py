"""Turn a folder of pictures or recordings into memory-mapped arrays, or into a set that can be streamed from the cloud.

    python scripts/prepare_arrays.py images PICTURES arrays/birds --size 64
    python scripts/prepare_arrays.py packed PICTURES arrays/birds
    python scripts/prepare_arrays.py audio  RECORDINGS arrays/calls --rate 16000
    python scripts/prepare_arrays.py streamed PICTURES_OR_RECORDINGS streamed/birds --chunk-mb 16

``packed`` and ``streamed`` keep the files' content as it is, for sets that are too large to be kept decoded. The command that loads
the result is printed at the end.
"""

from __future__ import annotations

import argparse
import sys

from ssl_suite.data.prepare import prepare_audio, prepare_images, prepare_packed, prepare_streamed

LAYOUT = ("INPUT is a folder: CLASS/FILE, or train/CLASS/FILE and test/CLASS/FILE, or files without classes. "
          "For audio it may also be a list (.tsv with a head line, or .jsonl) with the columns "
          "path, text or label, speaker, split.")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=LAYOUT)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="images|packed|audio|streamed")
    images = kinds.add_parser("images", help="uint8 pictures of one size", epilog=LAYOUT)
    images.add_argument("--size", type=int, default=64, help="shorter side in pixels (default: %(default)s)")
    packed = kinds.add_parser("packed", help="encoded pictures of any sizes end to end", epilog=LAYOUT)
    audio = kinds.add_parser("audio", help="int16 recordings end to end", epilog=LAYOUT)
    audio.add_argument("--rate", type=int, default=16000, help="samples per second (default: %(default)s)")
    streamed = kinds.add_parser("streamed", help="files in chunks, for a disk or the cloud", epilog=LAYOUT)
    streamed.add_argument("--chunk-mb", type=float, default=16, help="megabytes of a chunk (default: %(default)s)")
    for kind in (images, packed, audio, streamed):
        lists = ", or a list of recordings" if kind in (audio, streamed) else ""
        kind.add_argument("input", metavar="INPUT", help=f"folder of files{lists}")
        kind.add_argument("output", metavar="OUTPUT", help="folder to make; appears only when complete")
        kind.add_argument("--max-bad", type=int, default=0, help="unreadable files to leave out (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when all is written, 1 with one line of explanation otherwise."""
    args = parse(arguments)
    name = {"images": "image_arrays", "packed": "image_arrays data.size=64", "audio": "speech_arrays",
            "streamed": "streamed_images (or streamed_speech)"}[args.kind]
    try:
        if args.kind == "images":
            n = prepare_images(args.input, args.output, args.size, args.max_bad)
        elif args.kind == "packed":
            n = prepare_packed(args.input, args.output, args.max_bad)
        elif args.kind == "audio":
            n = prepare_audio(args.input, args.output, args.rate, args.max_bad)
        else:
            n = prepare_streamed(args.input, args.output, args.max_bad, int(args.chunk_mb * 1e6))
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{n} samples in {args.output}; use them with data={name} data.path={args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
