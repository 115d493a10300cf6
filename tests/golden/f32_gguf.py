"""Writes a copy of a GGUF file with every tensor dequantised to f32, for [cross_check]."""

import argparse
from pathlib import Path

import gguf
import numpy as np

# Written by GGUFWriter itself, or no longer true of the copy.
LEFT_OUT = {"general.architecture", "general.file_type", "general.quantization_version"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    reader = gguf.GGUFReader(args.gguf)
    writer = gguf.GGUFWriter(args.out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in LEFT_OUT:
            element_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=element_type)
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, weight.reshape([int(size) for size in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
