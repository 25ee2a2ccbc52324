"""Checks of a PyTorch file before anything of it is loaded: its zip directory and the objects its pickle names.

`torch.load(weights_only=True)` runs no code, but allocates whatever a file asks for (`bytearray(10**10)`, a tensor class called
with a size) and stops at the first object it does not know. Both are checked here first, without building anything.
"""

import pickletools
import zipfile
from collections import Counter
from pathlib import Path

from storage.errors import InputError

# what `torch.save` of nested dictionaries of tensors needs; none of these allocates memory, all refer to bytes of the file
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    {
        "argparse.Namespace",
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.device",
        "torch.Size",
        *(f"torch.{name}Storage" for name in _STORAGES),
    }
)
_BUILDERS = {
    "STACK_GLOBAL",
    "INST",
    "OBJ",
    "EXT1",
    "EXT2",
    "EXT4",
}  # other ways to name an object; torch.save writes none
_MAX_PICKLE_BYTES = 1 << 24  # names and shapes of a published checkpoint with its optimiser take 0.3 MB


def check_archive(path: Path) -> None:
    """Refuse a file that is not a complete, uncompressed PyTorch archive of weights and plain settings.

    Raises: InputError: naming what the file claims or contains; no object of it was built.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a PyTorch checkpoint archive (or is truncated). Files older than PyTorch 1.6 must be saved again "
            "with torch.save; a broken download must be fetched again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _check_directory(path, archive)
            pickled = archive.read(_pickle_name(path, archive))
            if damaged := archive.testzip():  # torch.load does not check the checksums of what it maps
                raise zipfile.BadZipFile(f"{damaged} differs from its checksum")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(f"{path} is a damaged archive: {error}. Fetch it again.") from error
    _check_names(path, pickled)


def _check_directory(path: Path, archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if packed or total > size:
        what = f"compressed entries {packed}" if packed else "overlapping entries"
        raise InputError(
            f"{path} claims {total} bytes in a file of {size} ({what}); PyTorch writes uncompressed archives, so this one is not "
            "trusted. Save it again with torch.save."
        )
    names = Counter(entry.filename for entry in entries)
    if double := sorted(name for name, count in names.items() if count > 1):
        raise InputError(
            f"{path} has several entries of one name, {double}; which one to read is undefined. Save it again with torch.save."
        )


def _pickle_name(path: Path, archive: zipfile.ZipFile) -> str:
    found = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1 or any(entry.filename.endswith("/constants.pkl") for entry in archive.infolist()):
        raise InputError(
            f"{path} is a zip file, but not a checkpoint of torch.save (one data.pkl, no TorchScript); it has "
            f"{[entry.filename for entry in found] or 'no data.pkl'}. Give the published .pt file."
        )
    if found[0].file_size > _MAX_PICKLE_BYTES:
        raise InputError(
            f"{path} describes its content in {found[0].file_size} bytes; checkpoints take less than {_MAX_PICKLE_BYTES}. "
            "It holds more than weights: save those alone."
        )
    return found[0].filename


def _check_names(path: Path, pickled: bytes) -> None:
    """Refuse a pickle that names any object outside `ALLOWED`; the message lists all of them."""
    foreign: set[str] = set()
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name == "GLOBAL":
                name = str(argument).replace(" ", ".", 1)
                foreign |= set() if name in ALLOWED else {name}
            elif operation.name in _BUILDERS:
                foreign.add(f"an object named by {operation.name}")
    except (ValueError, UnicodeDecodeError, IndexError) as error:
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint: {error}. Fetch it again.") from error
    if foreign:
        raise InputError(
            f"{path} contains Python objects that are not loaded, {sorted(foreign)}: building them could run arbitrary code. "
            "Where you trust the file, load it once in the environment it was made in and save what is needed, "
            'torch.save({"model": ckpt["model"], "ema": ckpt["ema"]}, "weights.pt"); import that with --variant and --volume-size.'
        )
